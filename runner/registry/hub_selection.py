"""Which files of a hub repository make a model. Pure: a listing and a tag in, a selection out.

Owns the allowlist of kinds (S15), the reading of quantisations from file names, the choice among them and
the refusal of surprising names (S13). Imports the error tree and oci. huggingface.py fetches the listing.

A file's quantisation is a whole token of its name (`Q4_K_M` in `Tiny-1B-Q4_K_M.gguf`), never a part of one:
`Q4_K` does not mean `Q4_K_M`. What the parts of one split model have in common is its stem.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NoReturn

import attrs

from runner.errors import AmbiguousModel, InvalidManifest, RemoteModelNotFound, UnsupportedArtifact
from runner.oci.digest import Digest
from runner.oci.filename import PATH_BYTES_MAX, relative_path_fault
from runner.oci.manifest import LAYERS_MAX

FileKind = Literal["gguf", "mmproj", "chat_template", "license"]

DEFAULT_TAGS = frozenset({"latest", "main"})  # no quantisation: the second is the hub's word for a branch
PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0")  # without a tag, in this order; then the smallest
PREFERRED_PROJECTORS = ("F16", "BF16", "F32")
TEXT_FILE_BYTES_MAX = 1 << 20  # a template or licence; packages accept no larger ones
LICENSES_MAX = 16
PLAIN_FILE_BYTES_MAX = 16 << 20  # outside large storage, which the hub demands above 10 MB; read into memory
NAMED_MAX = 40  # quantisations or stems listed in one message

_QUANTIZATION = (
    r"I?Q[1-9](?:_(?:K(?:_(?:XXL|XL|[SML]))?|[01](?:_[48]_[48])?|XXS|XS|XL|NL|[SML]))?"
    r"|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?(?:16|32)"
)
_LABEL = re.compile(rf"(?<![a-z0-9])((?:UD[-_])?(?:{_QUANTIZATION}))(?![a-z0-9_])", re.IGNORECASE)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>[0-9]{5})-of-(?P<count>[0-9]{5})")
_TEXT_NAME = re.compile(r"[a-z0-9_-]+(?:\.(?:txt|md))?")
_LICENSE = re.compile(r"(?:^|[-_])(?:licen[cs]e|copying|notice)(?:[-_.]|$)")
_GGUF = ".gguf"
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".dduf")
_TAGGABLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # a stem that a reference can name


@attrs.frozen(kw_only=True)
class ListedFile:
    """One file of a repository at one revision, as the hub lists it. `size_bytes` is checked to be a size.

    `sha256` is there for files in large file storage; `git_oid` (40 hex digits) is the other hash a hub
    publishes: SHA-1 over `blob <size>\\0` and the content.
    """

    path: str
    size_bytes: int
    sha256: Digest | None = None
    git_oid: str | None = None

    @property
    def name(self) -> str:
        """The last component, under which the file becomes a layer."""
        return self.path.rpartition("/")[2]


@attrs.frozen(kw_only=True)
class HubFile(ListedFile):
    """A file that was chosen, and what it is in a model."""

    kind: FileKind


@attrs.frozen(kw_only=True)
class Selection:
    """What to fetch: weights in shard order, licences, template, projector. `quantization` is for people."""

    files: tuple[HubFile, ...]
    quantization: str | None
    notes: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class _Weights:
    """The parts of one model. `stem` has neither `.gguf` nor shard number; `count` parts are announced."""

    stem: str
    label: str | None
    files: tuple[ListedFile, ...]
    count: int

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def choice(self) -> str:
        """The tag that means this, if a tag can."""
        return self.label or self.stem


def select(files: Sequence[ListedFile], tag: str | None, *, repository: str, registry: str) -> Selection:
    """The files that make the model `repository:tag`.

    1. Without a tag (or `latest`): the only model there is, else the first of PREFERRED, else the smallest.
    2. A quantisation: the files that carry exactly it. `Q4_K_XL` also finds `UD-Q4_K_XL`, when nothing
       carries it plainly. Of several, the shortest stem.
    3. Anything else: the files whose whole stem it is.

    Raises RemoteModelNotFound with the quantisations there are, AmbiguousModel when stems of the same length
    compete, UnsupportedArtifact for repositories without loadable weights or with parts missing, and
    InvalidManifest for a chosen file whose name is refused (S13).
    """
    everything = _groups(file for file in files if _kind(file) == "gguf")
    if not everything:
        _refuse_without_weights(files, repository, registry)
    asked = None if tag is None or tag.lower() in DEFAULT_TAGS else tag
    notes: list[str] = []
    weights = _default(everything, repository) if asked is None else _named(everything, asked, repository)
    if weights is None:
        raise RemoteModelNotFound(
            registry, f"{repository} has no quantisation {asked!r}; it has {_choices(everything)}"
        )
    _check_complete(weights, repository, registry)
    chosen = [
        *(_chosen(file, "gguf") for file in weights.files),
        *_licenses(files, notes),
        *_template(files, notes, repository, registry),
        *_projector(files, notes),
    ]
    for file in chosen:
        _check_name(file, repository)
        _check_hash(file, repository, registry)
    return Selection(files=tuple(chosen), quantization=weights.label, notes=tuple(notes))


def quantization_of(path: str) -> str | None:
    """The quantisation in upper case (`UD-Q4_K_XL`) that a path names: its file name, else its folder."""
    parts = path.removesuffix(_GGUF).split("/")
    for part in parts[-1], *parts[-2:-1]:
        found: list[str] = _LABEL.findall(part)
        if found:
            return found[-1].upper().replace("UD_", "UD-").replace("FP16", "F16").replace("FP32", "F32")
    return None


def _kind(file: ListedFile) -> FileKind | None:
    """What a file is for; None for everything that is not on the allowlist (S15).

    Templates and licences count at the top of a repository only: below, they belong to something else.
    """
    name = file.name.lower()
    if len(file.path) > PATH_BYTES_MAX:
        return None
    if name.endswith(_GGUF):
        if "mmproj" in name:
            return "mmproj"
        is_data = "imatrix" in name and quantization_of(file.path) is None  # calibration data, not weights
        return None if is_data else "gguf"
    if "/" in file.path:
        return None
    if name.endswith(".jinja"):
        return "chat_template"
    return "license" if _TEXT_NAME.fullmatch(name) and _LICENSE.search(name) else None


# weights


def _groups(files: Iterable[ListedFile]) -> list[_Weights]:
    """Models by folder, stem and number of parts, smallest first."""
    found: dict[tuple[str, str, int], dict[int, ListedFile]] = {}
    for file in files:
        folder = file.path.rpartition("/")[0]
        stem = file.name[: -len(_GGUF)]
        shard = _SHARD.fullmatch(stem)
        key, index = (folder, stem, 1), 1
        if shard:
            key, index = (folder, shard["stem"], int(shard["count"])), int(shard["index"])
        found.setdefault(key, {})[index] = file
    groups = [
        _Weights(
            stem=stem,
            label=quantization_of(f"{folder}/{stem}"),
            files=tuple(parts[index] for index in sorted(parts)),
            count=count if sorted(parts) == list(range(1, len(parts) + 1)) else 0,
        )
        for (folder, stem, count), parts in found.items()
    ]
    return sorted(groups, key=lambda weights: (weights.size_bytes, weights.stem))


def _default(everything: list[_Weights], repository: str) -> _Weights:
    if len(everything) == 1:
        return everything[0]
    for label in PREFERRED:
        found = _labelled(everything, label, repository)
        if found is not None:
            return found
    return next((weights for weights in everything if _is_complete(weights)), everything[0])


def _named(everything: list[_Weights], tag: str, repository: str) -> _Weights | None:
    label = quantization_of(tag) if _LABEL.fullmatch(tag) else None
    if label is not None:
        return _labelled(everything, label, repository)
    same = [weights for weights in everything if weights.stem.lower() == tag.lower()]
    return _shortest(same, repository)


def _labelled(everything: list[_Weights], label: str, repository: str) -> _Weights | None:
    for wanted in label, f"UD-{label}":
        found = _shortest([weights for weights in everything if weights.label == wanted], repository)
        if found is not None:
            return found
    return None


def _shortest(candidates: list[_Weights], repository: str) -> _Weights | None:
    """The one with the shortest stem; of those with one stem (whole and split), the one in fewer parts."""
    if not candidates:
        return None
    ranked = sorted(candidates, key=lambda weights: (len(weights.stem), weights.stem, len(weights.files)))
    rivals = {weights.stem for weights in ranked if len(weights.stem) == len(ranked[0].stem)}
    if len(rivals) > 1:
        raise AmbiguousModel(
            repository, tuple(_meant(repository, stem) for stem in sorted(rivals)[:NAMED_MAX])
        )
    return ranked[0]


def _meant(repository: str, stem: str) -> str:
    return f"{repository}:{stem}" if _TAGGABLE.fullmatch(stem) else f"{stem!a:.120}"


def _is_complete(weights: _Weights) -> bool:
    return weights.count == len(weights.files)


def _check_complete(weights: _Weights, repository: str, registry: str) -> None:
    if not _is_complete(weights):
        raise UnsupportedArtifact(registry, f"{repository} lacks parts of {weights.stem!r:.120}")
    if weights.count > LAYERS_MAX // 2:  # the other layers need room as well
        raise UnsupportedArtifact(registry, f"{repository} splits {weights.stem!r:.120} into too many parts")


def _choices(everything: list[_Weights]) -> str:
    """What tags there are, smallest model first: names that a tag can hold, so nothing odd is printed."""
    names = list(dict.fromkeys(w.choice for w in everything if _TAGGABLE.fullmatch(w.choice)))
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return (", ".join(names[:NAMED_MAX]) or "none that a tag can name") + more


def _refuse_without_weights(files: Sequence[ListedFile], repository: str, registry: str) -> NoReturn:
    others = sorted({end for file in files for end in _OTHER_WEIGHTS if file.name.lower().endswith(end)})
    holds = f"weights as {', '.join(others)} only" if others else "no model weights"
    raise UnsupportedArtifact(
        registry,
        f"{repository} holds {holds}; GGUF files can be loaded, which are often in a repository "
        f"of the same name that ends in -GGUF",
    )


# beside the weights


def _licenses(files: Sequence[ListedFile], notes: list[str]) -> list[HubFile]:
    found = [file for file in files if _kind(file) == "license"]
    fitting = [file for file in found if file.size_bytes <= TEXT_FILE_BYTES_MAX][:LICENSES_MAX]
    if len(fitting) < len(found):
        notes.append(f"{len(found) - len(fitting)} licence files are too large or too many and were left out")
    return [_chosen(file, "license") for file in sorted(fitting, key=lambda file: file.path)]


def _template(files: Sequence[ListedFile], notes: list[str], repository: str, registry: str) -> list[HubFile]:
    """`chat_template.jinja`, else the only template; else none, since the weights hold their own."""
    found = [file for file in files if _kind(file) == "chat_template"]
    exact = [file for file in found if file.name == "chat_template.jinja"]
    template = (exact or found)[:1] if exact or len(found) == 1 else []
    if not template and found:
        notes.append(f"none of {len(found)} templates was taken; the one inside the weights is used")
    if template and template[0].size_bytes > TEXT_FILE_BYTES_MAX:
        raise UnsupportedArtifact(
            registry, f"the chat template of {repository} is larger than {TEXT_FILE_BYTES_MAX} bytes"
        )
    return [_chosen(file, "chat_template") for file in template]


def _projector(files: Sequence[ListedFile], notes: list[str]) -> list[HubFile]:
    """The one projector that a model needs: F16 before BF16 before F32 before any other."""
    found = [file for file in files if _kind(file) == "mmproj"]
    ranks = {label: rank for rank, label in enumerate(PREFERRED_PROJECTORS)}

    def rank(file: ListedFile) -> tuple[int, int, str]:
        label = quantization_of(file.path)
        return ranks.get(label or "", len(ranks)), len(file.path), file.path

    chosen = sorted(found, key=rank)[:1]
    if len(found) > 1:
        notes.append(f"of {len(found)} projectors, {chosen[0].name!r:.120} was taken")
    return [_chosen(file, "mmproj") for file in chosen]


def _chosen(file: ListedFile, kind: FileKind) -> HubFile:
    return HubFile(
        path=file.path, size_bytes=file.size_bytes, sha256=file.sha256, git_oid=file.git_oid, kind=kind
    )


def _check_name(file: HubFile, repository: str) -> None:
    fault = relative_path_fault(file.path)
    if fault is not None:
        raise InvalidManifest(f"{repository} names a file {file.path!r:.120}: {fault}")


def _check_hash(file: HubFile, repository: str, registry: str) -> None:
    if file.sha256 is None and file.size_bytes > PLAIN_FILE_BYTES_MAX:
        raise UnsupportedArtifact(
            registry,
            f"{repository} lists {file.name!r:.120} without a SHA-256, and it is too large to do without",
        )
