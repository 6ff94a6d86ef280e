"""Saved states as files: what is written is read back, and nothing else is."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.store.states import (
    FILES_MAX,
    PART_BYTES,
    TOKENS_MAX,
    StateFile,
    StateFiles,
    StateKey,
    StateRefused,
    file_bytes_of,
    surplus,
)

KEY = StateKey(
    weights=("sha256:" + "a" * 64,),
    engine="engine 1",
    architecture="tiny",
    key_type="f16",
    value_type="f16",
    flash_attention="auto",
)
TOKENS = tuple(range(100))
NOW_S = 1_000_000.0
DATA = bytes(range(256)) * 4096 + b"the end"  # two parts and a little


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def files(root: Path) -> StateFiles:
    files = StateFiles(root)
    assert files.open() == ([], [])
    return files


def save(files: StateFiles, data: bytes = DATA, *, owner: str = "", step: int = 100_000) -> StateFile:
    writer = files.begin(KEY, owner, TOKENS, len(data), NOW_S)
    for start in range(0, len(data), step):
        assert not writer.is_complete
        writer.write(data[start : start + step])
    assert writer.is_complete
    return writer.finish()


def opened(root: Path) -> tuple[StateFiles, list[StateFile], list[str]]:
    files = StateFiles(root)
    return files, *files.open()


@pytest.mark.parametrize("size", [1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, len(DATA)])
@pytest.mark.parametrize("step", [1000, PART_BYTES, 3 * PART_BYTES])
def test_what_was_saved_is_read_by_the_next_run(root: Path, files: StateFiles, size: int, step: int) -> None:
    data = (DATA * 2)[:size]
    written = save(files, data, owner="somebody", step=step)
    again, (found,), notices = opened(root)
    assert not notices
    assert (found.key, found.owner, found.tokens) == (KEY, "somebody", written.tokens)
    assert (found.state_bytes, found.n_tokens) == (size, len(TOKENS))
    assert found.file_bytes == found.path.stat().st_size <= file_bytes_of(len(TOKENS), size)
    parts = list(again.parts(found))
    assert b"".join(parts) == data
    assert max(map(len, parts)) <= PART_BYTES


def test_K03_nobody_else_may_read_what_is_written(root: Path, files: StateFiles) -> None:
    before = os.umask(0)
    try:
        state = save(files)
    finally:
        os.umask(before)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for path in (state.path, root / "key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_time_of_use_is_known_to_the_next_run(root: Path, files: StateFiles) -> None:
    first, second = save(files), save(files)
    files.note_use(second, NOW_S + 1)
    files.note_use(first, NOW_S + 2)
    _, found, _ = opened(root)
    assert [state.used_s for state in found] == [NOW_S + 1, NOW_S + 2]
    assert found[-1].path == first.path


def test_a_writer_takes_as_many_bytes_as_were_announced(root: Path, files: StateFiles) -> None:
    writer = files.begin(KEY, "", TOKENS, 10, NOW_S)
    writer.write(b"123456789")
    with pytest.raises(StateRefused):
        writer.write(b"10")
    with pytest.raises(StateRefused):
        writer.finish()
    assert [path.name for path in root.iterdir()] == ["key"]


def test_what_is_abandoned_or_cut_short_leaves_nothing(root: Path, files: StateFiles) -> None:
    files.begin(KEY, "", TOKENS, 10, NOW_S).abandon()
    assert [path.name for path in root.iterdir()] == ["key"]
    writer = files.begin(KEY, "", TOKENS, 10, NOW_S)
    writer.write(b"12345")  # and then the daemon is killed
    assert opened(root)[1] == []
    assert [path.name for path in root.iterdir()] == ["key"]
    writer.abandon()


# G12: only what this daemon wrote and authenticated


def at(place: int) -> Callable[[Path], None]:
    """Change the byte there; from the end when negative."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)

    return damage


def cut_to(size: int) -> Callable[[Path], None]:
    """Keep so many bytes; or, when negative, all but so many."""

    def damage(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:size])

    return damage


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def replace_with(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def link(path: Path) -> None:
    other = path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(other)


def open_to_all(path: Path) -> None:
    path.chmod(0o644)


def claim(size: int) -> Callable[[Path], None]:
    """A head of that size, whatever follows."""

    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[:8] + size.to_bytes(4, "big") + content[12:])

    return damage


SEEN_AT_ONCE = {
    "magic": at(0),
    "length of the head": at(11),
    "head": at(20),
    "head without an end": claim(0),
    "head beyond its limit": claim(64 * 1024 + 1),
    "head that is all": claim(2**32 - 1),
    "empty": cut_to(0),
    "magic alone": cut_to(8),
    "within the head": cut_to(100),
    "within the tokens": cut_to(600),
    "last byte": cut_to(-1),
    "last part": cut_to(-40),
    "longer": grow,
    "link": link,
    "pipe": replace_with(os.mkfifo),
    "open to all": open_to_all,
    "text": replace_with(lambda path: path.write_text("{}")),
}


@pytest.mark.parametrize("damage", SEEN_AT_ONCE.values(), ids=SEEN_AT_ONCE)
def test_G12_a_file_that_is_not_ours_or_not_whole_is_removed(
    root: Path, files: StateFiles, damage: Callable[[Path], None]
) -> None:
    state, other = save(files), save(files)
    damage(state.path)
    _, found, notices = opened(root)
    assert [one.path for one in found] == [other.path]
    assert len(notices) == 1 and str(root) not in notices[0]
    assert not state.path.is_symlink() and not state.path.exists()


@pytest.mark.parametrize("place", [-1, -33, -40, -50_000, -PART_BYTES - 100, -2 * PART_BYTES])
def test_G12_a_part_that_was_altered_is_never_given_out(root: Path, files: StateFiles, place: int) -> None:
    state = save(files)
    at(place)(state.path)
    again, (found,), _ = opened(root)
    given: list[bytes] = []
    with pytest.raises(StateRefused):
        given.extend(again.parts(found))
    assert DATA.startswith(b"".join(given)) and b"".join(given) != DATA


def test_G12_parts_of_other_places_and_other_files_are_refused(root: Path, files: StateFiles) -> None:
    state, other = save(files), save(files, DATA[::-1])
    content = state.path.read_bytes()
    record = PART_BYTES + 32
    start = len(content) - len(DATA) - 3 * 32
    swapped = content[start + record : start + 2 * record] + content[start : start + record]
    state.path.write_bytes(content[:start] + swapped + content[start + 2 * record :])
    with pytest.raises(StateRefused):
        list(files.parts(state))
    foreign = other.path.read_bytes()
    state.path.write_bytes(content[:start] + foreign[start:])
    with pytest.raises(StateRefused):
        list(files.parts(state))
    state.path.write_bytes(foreign)
    with pytest.raises(StateRefused):
        list(files.parts(state))


def test_G12_what_another_daemon_wrote_is_removed(root: Path, files: StateFiles, tmp_path: Path) -> None:
    foreign = StateFiles(tmp_path / "other")
    foreign.open()
    save(foreign).path.rename(root / "foreign.state")
    _, found, notices = opened(root)
    assert found == [] and len(notices) == 1


@pytest.mark.parametrize("damage", [open_to_all, cut_to(31), grow, replace_with(lambda path: None)])
def test_K03_a_key_that_others_could_know_or_that_is_damaged_is_replaced(
    root: Path, files: StateFiles, damage: Callable[[Path], None]
) -> None:
    save(files)
    key = root / "key"
    before = key.read_bytes()
    damage(key)
    _, found, notices = opened(root)
    assert found == [] and notices
    assert key.read_bytes() != before and len(key.read_bytes()) == 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert opened(root)[2] == []


def test_what_has_another_name_is_left_alone(root: Path, files: StateFiles) -> None:
    (root / "notes.txt").write_text("of the user")
    opened(root)
    assert (root / "notes.txt").exists()


# what goes first


def kept(*used_s: float, file_bytes: int = 10, tokens: bytes = b"1234") -> list[StateFile]:
    return [
        StateFile(
            path=Path(f"{index}"),
            key=KEY,
            owner="",
            tokens=tokens,
            state_bytes=1,
            file_bytes=file_bytes,
            used_s=one_s,
            nonce=b"",
        )
        for index, one_s in enumerate(used_s)
    ]


@pytest.mark.parametrize(("limit_bytes", "n_gone"), [(31, 0), (30, 0), (29, 1), (20, 1), (19, 2), (0, 3)])
def test_O08_the_oldest_go_until_the_bytes_are_few_enough(limit_bytes: int, n_gone: int) -> None:
    states = kept(1, 2, 3)
    assert surplus(states, now_s=3, limit_bytes=limit_bytes, age_max_s=9) == states[:n_gone]


def test_O08_what_was_not_used_for_long_goes() -> None:
    states = kept(0, 1, 2)
    assert surplus(states, now_s=10, limit_bytes=99, age_max_s=10) == []
    assert surplus(states, now_s=11, limit_bytes=99, age_max_s=10) == states[:1]
    assert surplus(states, now_s=12, limit_bytes=10, age_max_s=10) == states[:2]


def test_O08_files_and_tokens_have_limits_too() -> None:
    states = kept(*[1.0] * (FILES_MAX + 1), file_bytes=0)
    assert surplus(states[1:], now_s=1, limit_bytes=1, age_max_s=1) == []
    assert surplus(states, now_s=1, limit_bytes=1, age_max_s=1) == states[:1]
    large = kept(1, 2, tokens=bytes(2 * TOKENS_MAX))
    assert surplus(large, now_s=2, limit_bytes=99, age_max_s=9) == []
    larger = [*large, *kept(3)]
    assert surplus(larger, now_s=3, limit_bytes=99, age_max_s=9) == larger[:1]
