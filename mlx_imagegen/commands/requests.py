"""What is asked for: a prompt, a file or standard input, and a picture to make again -> requests for `Pipeline.jobs`.

Out: how to open the model, and for each request a dict of generate()'s parameters. Nothing is checked here that
request/job.py checks.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..documents import TEXT_LIMIT_BYTES, parse_json, read_file
from ..errors import ImagegenError, MissingFileError, RequestError
from ..escaping import shown
from ..paths import expanded
from ..request.kinds import OF_THE_PICTURE, Parameter
from ..request.parameters import BY_NAME, PARAMETERS, suggestion
from .flags import sides

# Parameters by where they are given: a flag, a job's line, or a picture's record, which has a fingerprint of some.
GIVEN = [row for row in PARAMETERS if row.flag]
JOB_FIELDS = [row.name for row in GIVEN if row.scope != "load"]
LOAD_FIELDS = [row.name for row in GIVEN if row.scope == "load" and row.recorded]  # the model: the same for all jobs
RECORD_FIELDS = [row.name for row in GIVEN if row.scope == "picture" and row.recorded and not row.hashed]
HASHED_FIELDS = {row.record_key: row for row in GIVEN if row.hashed}
PORTABLE_FIELDS = [row.name for row in GIVEN if row.portable]  # what another model makes of a record
# What else a record says; nothing of it is asked for again.
SAID_FIELDS = frozenset("licence manifest parallel quantization report revision tool upsampled_from version".split())
NOT_OF_HOW = {*OF_THE_PICTURE, "model"}  # what a record's entry says besides how the picture counted
MOST_LORAS = 100


class Request(dict[str, Any]):
    """generate()'s parameters, and the line of a file that they were written in, if any."""

    def __init__(self, parameters: Mapping[str, Any], where: str = ""):
        super().__init__(parameters)
        self.where = where


@contextmanager
def naming_line(request: Mapping[str, Any]) -> Iterator[None]:
    """Around what checks a request: errors name the line that it is from."""
    try:
        yield
    except ImagegenError as error:
        where = request.where if isinstance(request, Request) else ""
        if not where or str(error).startswith(where):
            raise
        raise type(error)(f"{where}: {error}") from error


def read_requests(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How to open the model, and the requests: flags over the record of --from, a job's own line over both."""
    given, opening = _given(args, "call", "picture"), _given(args, "load")
    given.pop("prompt", None)
    if args.size:
        if "width" in given or "height" in given:
            raise RequestError("give --size or --width and --height, not both.")
        given |= sides(args.size)
    if args.seed:
        given["seed"] = args.seed[0] if len(args.seed) == 1 else args.seed
    record = _record(args.replay, given, opening) if args.replay else {}
    opening = {name: record[name] for name in LOAD_FIELDS if name in record} | opening
    shared = {name: record[name] for name in ("seed", *RECORD_FIELDS) if name in record} | given
    prompts = list(_prompts(args)) or [Request({"prompt": record.get("prompt")})]
    if prompts[0].get("prompt") is None:
        raise RequestError("no prompt is given; write it in quotes, or use --prompt-file FILE or - for standard input.")
    return opening, [Request(_opened(shared | prompt), prompt.where) for prompt in prompts]


def _given(args: argparse.Namespace, *scopes: str) -> dict[str, Any]:
    names = [row.name for row in GIVEN if row.scope in scopes]
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _record(path: Path, given: dict[str, Any], opening: dict[str, Any]) -> dict[str, Any]:
    """The record of --from, less what the flags put something else in place of."""
    from ..hub.recognition import requested_as
    from ..image import read_metadata
    from ..request.record_paths import fields_to_give, is_same_place

    record = read_metadata(expanded(path))
    _check_record(path, record)
    if "model" in opening and not is_same_place(record.get("model"), requested_as(opening["model"])):
        return {name: record[name] for name in PORTABLE_FIELDS if name in record}
    for key, row in HASHED_FIELDS.items():
        if key in record and row.name not in given:
            raise RequestError(
                f"{path} was made from {row.name}, which is not kept in it; give it again with {row.flag}."
            )
        if key in record and isinstance(given[row.name], list):
            given[row.name] = _as_recorded(path, row, given[row.name], record[key])
    for field, name in fields_to_give(record):
        if field not in opening:
            raise RequestError(
                f"{path} was made with the {field} {name}, and where that is, its record does not say; give it again "
                f"with {BY_NAME[field].flag}."
            )
    gone = {name for row in GIVEN if row.name in given for name in row.replaces}
    return {name: value for name, value in record.items() if name not in gone}


def _as_recorded(path: Path, row: Parameter, entries: list[Any], recorded: Any) -> list[Any]:
    """Pictures given again, each with how it counted; their networks have to be named, for they may be fetched."""
    if not isinstance(recorded, list) or len(recorded) != len(entries):
        return entries
    if not all(isinstance(each, dict) for each in (*recorded, *entries)):
        return entries
    for was, entry in zip(recorded, entries, strict=True):
        if was.get("model") and "model" not in entry:
            raise RequestError(
                f"{path} was made from {row.name} by {shown(was['model'])}; name that with the picture again, or "
                f"another one: {row.flag} {row.metavar}."
            )
    counted = [{name: was[name] for name in was if name not in NOT_OF_HOW} for was in recorded]
    return [was | entry for was, entry in zip(counted, entries, strict=True)]


def _check_record(path: Path, record: dict[str, Any]) -> None:
    """What can be seen without the model: every field is of its kind. The limits are checked with those of flags."""
    from ..request.options import check_types

    known = ("prompt", "seed", *LOAD_FIELDS, *RECORD_FIELDS)
    if lacking := [name for name in ("prompt", "seed") if name not in record]:
        raise RequestError(f"{path}: its record is damaged: it has no '{lacking[0]}'.")
    if unknown := sorted(record.keys() - {*BY_NAME, *HASHED_FIELDS, *SAID_FIELDS}):
        raise RequestError(
            f"{path}: its record has a field '{shown(unknown[0])}', which this version does not know; take "
            "the version that made it."
        )
    if empty := [name for name in known if name in record and record[name] is None]:
        raise RequestError(f"{path}: its record is damaged: '{empty[0]}' holds nothing.")
    try:
        check_types(record)
    except RequestError as error:
        raise RequestError(f"{path}: its record is damaged: {error}") from error
    if len(record.get("lora") or ()) > MOST_LORAS:
        raise RequestError(f"{path}: its record names {len(record['lora'])} LoRAs, and {MOST_LORAS} are taken at most.")


def _prompts(args: argparse.Namespace) -> Iterator[Request]:
    """The prompts that are given directly, or in a file; each with the parameters of its own line."""
    if args.prompt is not None and args.prompt_text is not None:
        raise RequestError("the prompt is given twice; give it alone or as --prompt TEXT, not both.")
    prompt = args.prompt_text if args.prompt is None else args.prompt
    if prompt is not None and args.prompt_file is not None:
        raise RequestError("give a prompt or --prompt-file, not both.")
    if args.prompt_file is not None:
        yield from _lines(_text(args.prompt_file, "--prompt-file"), str(args.prompt_file))
    elif args.prompt == "-":
        try:
            yield from _lines(sys.stdin.read(), "standard input")
        except UnicodeDecodeError as error:
            raise RequestError(f"standard input is not {error.encoding} text ({error.reason}).") from error
    elif prompt is not None:
        yield Request({"prompt": prompt})


def read_jobs(path: Path, flag: str) -> list[dict[str, Any]]:
    """A file's prompts, each with the parameters of its own line, for commands that draw nothing but those."""
    return [_opened(job) for job in _lines(_text(path, flag), str(path))]


def readable(references: Sequence[Path]) -> list[str]:
    """The pictures' paths, for a process that opens them itself; one that cannot be opened is refused now."""
    from ..image import open_picture

    for path in references:
        open_picture(path, "references")
    return [str(expanded(path)) for path in references]


def same_for_all(args: argparse.Namespace) -> dict[str, Any]:
    """What every picture of `compare` is drawn with."""
    steps = {} if args.steps is None else {"steps": args.steps}
    references = {"references": readable(args.references)} if args.references else {}
    return {"seed": args.seed, **steps, **sides(args.size), **references}


def _text(path: Path, flag: str) -> str:
    path = expanded(path)
    if path.suffix.lower() in (".toml", ".json"):  # each of its lines would become a picture
        raise RequestError(
            f"{flag}: {path} is not read as such; write a prompt, or a job as a JSON object, on each line."
        )
    try:
        text = read_file(path, TEXT_LIMIT_BYTES, RequestError, "give a text file")
        return text.decode("utf-8-sig")  # some editors begin a file with a mark, which would hide a {
    except MissingFileError as error:
        raise MissingFileError(f"{flag}: {path} is not there.") from error
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{flag}: {path} cannot be read as UTF-8 text ({error}); give a text file, saved as UTF-8."
        ) from error


def _lines(text: str, where: str) -> Iterator[Request]:
    """One prompt a line; a line that begins with { is a job with parameters of its own."""
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise RequestError(f"{where} holds no prompt; write one on each line.")
    for number, line in lines:
        place = f"{where}, line {number}"
        yield Request(_job(line, place) if line.startswith("{") else {"prompt": line}, place)


def _job(line: str, where: str) -> dict[str, Any]:
    job: dict[str, Any] = parse_json(line, f"{where}:", RequestError, "correct the line")
    if not isinstance(job.get("prompt"), str):
        raise RequestError(f"{where}: a job needs a prompt, as text.")
    for name in job:
        if name in LOAD_FIELDS:
            raise RequestError(f"{where}: '{name}' is the same for all jobs: give it as {BY_NAME[name].flag}.")
        if name not in JOB_FIELDS:
            near = suggestion(name, JOB_FIELDS)
            hint = f"did you mean {near}?" if near else "mlx-imagegen generate --help lists the parameters."
            raise RequestError(f"{where}: a job has no '{shown(name)}'; {hint}")
    return job


def _opened(request: dict[str, Any]) -> dict[str, Any]:
    """With the noise read from its files."""
    arrays: dict[str, Any] = {}
    if "noise" in request:
        arrays["noise"] = _array("noise", request["noise"])
    if "step_noise" in request:
        paths = request["step_noise"] if isinstance(request["step_noise"], list) else [request["step_noise"]]
        arrays["step_noise"] = [_array("step_noise", path) for path in paths]
    return request | arrays


def _array(name: str, path: str | Path) -> Any:
    import numpy as np

    try:
        loaded = np.load(expanded(path), allow_pickle=False)
        return np.asarray(loaded, np.float32)
    except FileNotFoundError as error:
        raise MissingFileError(f"{name}: {path} is not there.") from error
    except (OSError, ValueError, TypeError, EOFError, RecursionError, MemoryError) as error:
        raise RequestError(f"{name}: {path} is not a NumPy array file of numbers; write it with numpy.save.") from error
