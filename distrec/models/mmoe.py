"""MMoE, and PLE's extraction layer: several tasks share experts, each by a gate of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distrec.config.words import Count, Field, Fraction, PositiveInt, Section
from distrec.errors import UserError
from distrec.models.fields import field_dims, whole_row, whole_width
from distrec.models.inputs import Embedded, InputSpec
from distrec.models.layers import MLP


class MMoE(nn.Module):
    """logit of task k = tower_k(sum_i g_k(x)_i expert_i(x)), g_k(x) = softmax(W_k x).

    Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018,
    section 4.2, equations 6 to 8. x is the numbers and all embeddings side by side; a sequence is the mean of its vectors.

    `task_experts` adds experts of one task alone: gate k then mixes the shared ones and those of task k. That is the
    Customized Gate Control of Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
    Personalized Recommendations", RecSys 2020, section 4.1, equations 1 to 4: one extraction layer of PLE.
    """

    class Params(Section):
        """Widths are those of hidden layers, with ReLU; a linear layer to the logit follows the last of a tower."""

        experts: PositiveInt = Field(default=4, description="shared by all tasks")
        task_experts: Count = Field(default=0, description="more for each task alone: one extraction layer of PLE")
        expert_mlp: tuple[PositiveInt, ...] = Field(default=(128, 64), min_length=1, description="widths of an expert")
        tower_mlp: tuple[PositiveInt, ...] = Field(default=(32,), description="widths of a task's tower")
        dropout: Fraction = Field(default=0.0, description="in experts and towers")
        batch_norm: bool = Field(default=False, description="in experts and towers")

    def __init__(self, spec: InputSpec, params: Params) -> None:
        super().__init__()
        _require_tasks(spec.num_tasks)
        self.fields, width = tuple(field_dims(spec)), whole_width(spec, "mmoe")
        self.experts = nn.ModuleList(_mlp(width, params.expert_mlp, params) for _ in range(params.experts))
        self.tasks = nn.ModuleList(TaskTower(width, params) for _ in range(spec.num_tasks))

    def forward(self, inputs: Embedded) -> Tensor:
        """Logits (B, num_tasks), in the order of the config's tasks."""
        x = whole_row(inputs, self.fields)
        shared = [expert(x) for expert in self.experts]
        return torch.cat([task(x, shared) for task in self.tasks], dim=1)


class TaskTower(nn.Module):
    """What belongs to one task: experts of its own, where it has any, its gate, its tower and the layer to its logit."""

    def __init__(self, width: int, params: MMoE.Params) -> None:
        super().__init__()
        self.experts = nn.ModuleList(_mlp(width, params.expert_mlp, params) for _ in range(params.task_experts))
        self.gate = nn.Linear(width, params.experts + params.task_experts, bias=False)
        self.tower = _mlp(params.expert_mlp[-1], params.tower_mlp, params)
        self.head = nn.Linear(self.tower.out_width, 1)

    def forward(self, x: Tensor, shared: list[Tensor]) -> Tensor:
        """Features (B, width) and the shared experts' outputs, (B, expert_mlp[-1]) each -> logit (B, 1)."""
        outputs = torch.stack([*shared, *(expert(x) for expert in self.experts)], dim=1)  # (B, experts, expert_mlp[-1])
        weights = self.gate(x).softmax(dim=1)
        return self.head(self.tower((weights.unsqueeze(2) * outputs).sum(dim=1)))


def _mlp(width: int, widths: tuple[int, ...], params: MMoE.Params) -> MLP:
    return MLP(width, widths, dropout=params.dropout, batch_norm=params.batch_norm)


def _require_tasks(num_tasks: int) -> None:
    if num_tasks < 2:
        raise UserError(
            f"model mmoe shares experts among tasks, and there is {num_tasks}: declare at least two [[tasks]], each with its "
            "label, or take a model of one task"
        )
