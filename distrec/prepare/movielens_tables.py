"""MovieLens' raw text -> one frame of ratings joined with users and movies, the same for both editions."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import polars as pl

from distrec.errors import UserError
from distrec.prepare.movielens_source import Edition

GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)  # the order of ml-100k's flags, for both editions
GENDERS = ("F", "M")
YEAR = r"\((\d{4})\)\s*$"


def joined(edition: Edition, files: Mapping[str, bytes]) -> pl.DataFrame:
    """One row a rating, in the order of (timestamp, line).

    Columns: user_id, movie_id, rating, timestamp (int64), gender (0: F, 1: M), age (years; ml-1m has seven classes by
    their lower end), occupation, zip (string), genres (list of indexes into GENRES), genre (the first of them),
    year (float32, null where the title has none).

    Raises:
        UserError: a file that is not in its edition's form, or a rating whose user or movie is in no file.
    """
    one_m = edition.occupations is None
    users = _parsed(edition.users, files, _users_1m if one_m else lambda raw: _users_100k(raw, files[str(edition.occupations)]))
    movies = movies_of(edition, files).drop("title")
    ratings = _parsed(edition.ratings, files, lambda raw: _ratings(raw, b"::" if one_m else b"\t"))
    frame = ratings.join(users, on="user_id", how="left", maintain_order="left")
    frame = frame.join(movies, on="movie_id", how="left", maintain_order="left")
    _refuse_strangers(frame, edition)
    return frame.sort("timestamp", maintain_order=True)


def movies_of(edition: Edition, files: Mapping[str, bytes]) -> pl.DataFrame:
    """One row a movie: movie_id, title, year, genres and genre, as in `joined`.

    Raises:
        UserError: a file that is not in its edition's form.
    """
    return _parsed(edition.movies, files, _movies_1m if edition.occupations is None else _movies_100k)


def _parsed(name: str, files: Mapping[str, bytes], parse: Callable[[bytes], pl.DataFrame]) -> pl.DataFrame:
    try:
        return parse(files[name])
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{name} is not in MovieLens' form: {str(error).splitlines()[0]}") from error


def _refuse_strangers(frame: pl.DataFrame, edition: Edition) -> None:
    for key, known, file in (("user_id", "gender", edition.users), ("movie_id", "genres", edition.movies)):
        strangers = frame.filter(pl.col(known).is_null())
        if strangers.height:
            raise UserError(f"{edition.ratings} names {key} {strangers[key][0]}, which {file} does not describe")


def _ratings(raw: bytes, separator: bytes) -> pl.DataFrame:
    names = ("user_id", "movie_id", "rating", "timestamp")
    return _csv(raw, separator, names).select(pl.all().cast(pl.Int64))


def _users_1m(raw: bytes) -> pl.DataFrame:
    frame = _csv(raw, b"::", ("user_id", "gender", "age", "occupation", "zip"))
    return frame.select(_id("user_id"), _gender(), _id("age"), _id("occupation"), "zip")


def _users_100k(raw: bytes, occupations: bytes) -> pl.DataFrame:
    frame = _csv(raw, b"|", ("user_id", "age", "gender", "occupation", "zip"))
    names = occupations.decode("latin-1").split()
    return frame.select(_id("user_id"), _gender(), _id("age"), _index("occupation", names), "zip")


def _movies_1m(raw: bytes) -> pl.DataFrame:
    frame = _csv(raw, b"::", ("movie_id", "title", "genres"))
    genres = pl.col("genres").str.split("|").list.eval(_index("", GENRES))
    return _with_genre(frame.select(_id("movie_id"), "title", _year(), genres.alias("genres")))


def _movies_100k(raw: bytes) -> pl.DataFrame:
    flags = [f"flag{i}" for i in range(len(GENRES))]
    frame = _csv(raw, b"|", ("movie_id", "title", "released", "video", "url", *flags))
    marks = [pl.when(pl.col(flag) == "1").then(pl.lit(i, pl.Int64)) for i, flag in enumerate(flags)]
    genres = pl.concat_list(marks).list.drop_nulls()
    return _with_genre(frame.select(_id("movie_id"), "title", _year(), genres.alias("genres")))


def _csv(raw: bytes, separator: bytes, names: tuple[str, ...]) -> pl.DataFrame:
    """Every column as text. MovieLens is latin-1 and quotes nothing; "::" is not a separator that readers know."""
    text = raw.decode("latin-1").replace(separator.decode(), "\x1f").encode()
    return pl.read_csv(
        io.BytesIO(text),
        separator="\x1f",
        has_header=False,
        quote_char=None,
        schema=dict.fromkeys(names, pl.String),
    )


def _id(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Int64)


def _gender() -> pl.Expr:
    return _index("gender", GENDERS)


def _index(name: str, words: tuple[str, ...] | list[str]) -> pl.Expr:
    column = pl.col(name) if name else pl.element()
    return column.replace_strict(list(words), range(len(words)), return_dtype=pl.Int64)


def _year() -> pl.Expr:
    return pl.col("title").str.extract(YEAR).cast(pl.Float32).alias("year")


def _with_genre(movies: pl.DataFrame) -> pl.DataFrame:
    return movies.with_columns(pl.col("genres").list.first().fill_null(0).alias("genre"))
