"""`distrec prepare DATASET`: a verb a dataset. Whatever a verb needs is imported inside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from distrec.prepare.output import Prepared

prepare = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Turn a raw dataset into Parquet and dataset.json.")

Out = Annotated[Path, typer.Option(help="folder to write into", show_default=False)]
Source = Annotated[Path | None, typer.Option(help="the publisher's zip, or its folder; default: download it")]
Seed = Annotated[int, typer.Option(min=0, help="seed of whatever is drawn")]
Overwrite = Annotated[bool, typer.Option(help="replace what is in the folder")]
MaxHistory = Annotated[int, typer.Option(help="retrieval: newest items kept in a history")]
MinHistory = Annotated[int, typer.Option(help="retrieval: leave training rows out that have fewer items before them")]
MovieLensTask = Annotated[
    Literal["ctr", "rating", "retrieval"],
    typer.Option(help="ctr: over 3 is positive, 3 dropped; rating: 1 to 5; retrieval: the next movie, leave-one-out"),
]
MovieLensSplit = Annotated[
    Literal["time", "random"] | None, typer.Option(help="ctr and rating: 80/10/10, by time or by chance; default: time")
]
SplitFiles = Annotated[list[str] | None, typer.Option(help="files of a split of your own; LOG is then train")]
ShareOfRows = Annotated[float | None, typer.Option(help="temporal: share of the rows; default: 0.1")]
FETCHED = {"download_progress": "download", "progress": "rows"}  # what a published dataset counts, by argument


def _run(write: Callable[..., Prepared], *given: Any, bars: dict[str, str], **options: Any) -> None:
    """Call a preparation, with a bar for each thing that it counts, and say what it wrote."""
    from distrec import log
    from distrec.screen import bar, prepared
    from distrec.signals import ended_by_sigterm

    log.setup(0)
    with ended_by_sigterm(), ExitStack() as stack:
        shown = {argument: stack.enter_context(bar(what)) for argument, what in bars.items()}
        result = write(*given, **options, **shown)
    prepared(result)


@prepare.command()
def synthetic(
    out: Out,
    rows: Annotated[int, typer.Option(help="training rows")] = 400_000,
    valid_rows: Annotated[int, typer.Option(help="validation rows")] = 100_000,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Criteo-shaped rows with a planted signal. Their best possible AUC is known."""
    given = locals()  # the options: the preparation has the same
    from distrec.prepare.synthetic import synthetic as write

    _run(write, **given, bars={"progress": "rows"})


def _add_movielens(which: str, title: str) -> None:
    """A verb an edition, all with the same options."""

    @prepare.command(which, help=f"{title}, from its publisher or from a local copy.")
    def movielens(
        out: Out,
        task: MovieLensTask = "ctr",
        split: MovieLensSplit = None,
        max_history: MaxHistory = 50,
        min_history: MinHistory = 0,
        seed: Seed = 0,
        source: Source = None,
        overwrite: Overwrite = False,
    ) -> None:
        from distrec.errors import UserError
        from distrec.prepare.movielens import HISTORY
        from distrec.prepare.movielens import movielens as rated
        from distrec.prepare.retrieval.movielens_retrieval import movielens_retrieval as in_sequence

        given: dict[str, Any] = {"seed": seed, "source": source, "overwrite": overwrite, "bars": FETCHED}
        if task == "retrieval":
            if split:
                raise UserError(f"--split {split}: the split of --task retrieval is leave-one-out; leave --split away")
            _run(in_sequence, which, out, max_history=max_history, min_history=min_history, **given)
        else:
            if (max_history, min_history) != (HISTORY, 0):
                raise UserError("--max-history and --min-history are for --task retrieval; leave them away")
            _run(rated, which, out, task=task, split=split or "time", **given)


_add_movielens("movielens-1m", "MovieLens-1M")
_add_movielens("movielens-100k", "MovieLens-100K")


@prepare.command()
def gowalla(
    out: Out,
    valid_share: Annotated[
        float, typer.Option(help="hold one training place out for so many of the users; 0: as published, choose on test")
    ] = 0.0,
    max_history: MaxHistory = 50,
    min_history: MinHistory = 0,
    seed: Seed = 0,
    source: Source = None,
    overwrite: Overwrite = False,
) -> None:
    """Gowalla check-ins for retrieval. The split is LightGCN's and BARS'."""
    given = locals()
    from distrec.prepare.retrieval.gowalla import gowalla as write

    _run(write, **given, bars=FETCHED)


@prepare.command("amazon-sequences")
def amazon_sequences(
    out: Out,
    category: Annotated[str, typer.Option(help="as the publisher names its files")] = "Beauty",
    max_history: MaxHistory = 50,
    min_history: MinHistory = 0,
    seed: Seed = 0,
    source: Source = None,
    overwrite: Overwrite = False,
) -> None:
    """Amazon reviews for retrieval, leave-one-out. From the sequences that S3-Rec publishes."""
    given = locals()
    from distrec.prepare.retrieval.amazon_sequences import amazon_sequences as write

    _run(write, **given, bars=FETCHED)


@prepare.command()
def interactions(
    log: Annotated[
        list[str], typer.Argument(metavar="LOG", help="Parquet or CSV: files, folders, patterns", show_default=False)
    ],
    out: Out,
    user: Annotated[str, typer.Option(help="column of users: integers or text")] = "user_id",
    item: Annotated[str, typer.Option(help="column of items, in the log and in --items")] = "item_id",
    time: Annotated[str, typer.Option(help="column of times: integers, timestamps or ISO 8601")] = "timestamp",
    label: Annotated[str | None, typer.Option(help="only rows where this column is over 0 count; default: all rows")] = None,
    feature: Annotated[list[str] | None, typer.Option(help="column of the user or the moment; may be repeated")] = None,
    items: Annotated[Path | None, typer.Option(help="the catalogue, a row an item; default: the log's items")] = None,
    item_feature: Annotated[list[str] | None, typer.Option(help="column of --items; may be repeated")] = None,
    title: Annotated[str | None, typer.Option(help="column of --items; default: the id")] = None,
    category: Annotated[str | None, typer.Option(help="column of --items")] = None,
    split: Annotated[
        Literal["leave-one-out", "temporal"] | None,
        typer.Option(help="each user's last two, or all after two moments; default: leave-one-out"),
    ] = None,
    valid_share: ShareOfRows = None,
    test_share: ShareOfRows = None,
    valid: SplitFiles = None,
    test: SplitFiles = None,
    repeats: Annotated[
        Literal["first", "all"], typer.Option(help="a user and an item count once, at first, or every time")
    ] = "first",
    unknown_items: Annotated[
        Literal["error", "drop"] | None, typer.Option(help="items of the log that --items lacks; default: error")
    ] = None,
    literal_ids: Annotated[bool, typer.Option(help="ids such as NULL, NA or nan are ids, and not missing ones")] = False,
    max_history: MaxHistory = 50,
    min_history: MinHistory = 0,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Your own log for retrieval: who took which item when."""
    from distrec.errors import UserError
    from distrec.prepare.retrieval.interactions import interactions as write
    from distrec.prepare.retrieval.items import ItemFile
    from distrec.prepare.retrieval.log import LogColumns
    from distrec.prepare.retrieval.splits import Splitting

    if not items and (item_feature or title or category or unknown_items):
        raise UserError("--item-feature, --title, --category and --unknown-items are about --items; name that file too")
    if split and (valid or test):
        raise UserError(f"--split {split}: --valid and --test are a split already; leave one of them away")
    if split != "temporal" and (valid_share is not None or test_share is not None):
        raise UserError("--valid-share and --test-share are for --split temporal; name that split, or leave them away")
    shares = {name: share for name, share in (("valid", valid_share), ("test", test_share)) if share is not None}
    _run(
        write,
        (log, valid or (), test or ()),
        out,
        columns=LogColumns(user, item, time, feature or (), label, literal_ids),
        items=ItemFile(items, item, title, category, item_feature or (), literal_ids) if items else None,
        splitting=Splitting("files" if valid or test else split or "leave-one-out", **shares),
        repeats=repeats,
        unknown_items=unknown_items or "error",
        max_history=max_history,
        min_history=min_history,
        seed=seed,
        overwrite=overwrite,
        bars={"read_progress": "rows read", "progress": "rows"},
    )


@prepare.command()
def criteo(
    source: Annotated[
        list[str], typer.Option(help="train.txt, a day file, a folder or a quoted pattern; may be repeated", show_default=False)
    ],
    out: Out,
    hash_sizes: Annotated[
        Literal["mlperf"] | None,
        typer.Option(help="at most the rows of MLPerf's DLRM-DCNv2; default: 64-bit ids, to be hashed"),
    ] = None,
    max_rows_per_table: Annotated[int | None, typer.Option(help="at most so many rows in each table")] = None,
    min_count: Annotated[
        int | None, typer.Option(help="number the ids that training rows hold so often; others become 0")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Criteo's click logs, as TSV or gzip. Kaggle's or the terabyte; held out: the last file, or the last seventh of one."""
    from distrec.prepare.criteo import criteo as write

    numbering = {"hash_sizes": hash_sizes, "max_rows_per_table": max_rows_per_table, "min_count": min_count}
    counted = {"count_progress": "files counted", "progress": "rows"}
    _run(write, source, out, **numbering, overwrite=overwrite, bars=counted)
