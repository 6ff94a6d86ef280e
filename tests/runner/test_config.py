"""Settings: precedence, and every fault of every source at once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.config import OPTIONS, Origin, resolve
from runner.errors import StartRefused


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("")
    return path


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(file: Path) -> None:
    file.write_text("port = 1\nqueue_limit = 5\ncontext_size = 512\n")
    environment = {"RUNNER_PORT": "2", "RUNNER_QUEUE_LIMIT": "6"}
    resolved = resolve({"port": "3"}, environment, file)
    assert resolved.settings.port == 3
    assert resolved.settings.queue_limit == 6
    assert resolved.settings.context_size == 512
    assert resolved.settings.max_sequences == 8
    assert resolved.origins["port"] is Origin.FLAG
    assert resolved.origins["queue_limit"] is Origin.ENVIRONMENT
    assert resolved.origins["context_size"] is Origin.FILE
    assert resolved.origins["max_sequences"] is Origin.DEFAULT


def test_all_faults_are_reported_together(file: Path) -> None:
    file.write_text("queue_limit = true\nnonsense = 1\n")
    with pytest.raises(StartRefused) as refusal:
        resolve({"port": "70000", "host": "evil.example"}, {"RUNNER_LOG_LEVEL": "loud"}, file)
    text = str(refusal.value)
    for part in ("queue_limit", "nonsense", "--port", "--host", "RUNNER_LOG_LEVEL"):
        assert part in text


@pytest.mark.parametrize("content", ["port = ", "[", "\x00", "version = 2"])
def test_L14_a_damaged_or_newer_file_is_named_and_kept(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(StartRefused, match=r"config\.toml"):
        resolve({}, {}, file)
    assert file.read_text() == content


def test_L14_an_empty_file_means_defaults(file: Path) -> None:
    assert resolve({}, {}, file).settings.host == "127.0.0.1"


def test_a_file_named_explicitly_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="no such file"):
        resolve({}, {}, tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300.0), ("0", 0.0), ("-1", math.inf), ("never", math.inf), ("90", 90.0)]
)
def test_durations(file: Path, text: str, seconds: float) -> None:
    assert resolve({"keep_alive": text}, {}, file).settings.keep_alive_s == seconds


@pytest.mark.parametrize("text", ["-2", "soon", "nan", ""])
def test_a_duration_that_is_none_is_refused(file: Path, text: str) -> None:
    with pytest.raises(StartRefused):
        resolve({"keep_alive": text}, {}, file)


@pytest.mark.parametrize(("text", "is_accepted"), [("0", False), ("1", True), ("64", True), ("65", False)])
def test_the_range_of_max_sequences(file: Path, text: str, is_accepted: bool) -> None:
    if is_accepted:
        assert resolve({"max_sequences": text}, {}, file).settings.max_sequences == int(text)
    else:
        with pytest.raises(StartRefused):
            resolve({"max_sequences": text}, {}, file)


def test_lists_come_as_text_or_as_toml_lists(file: Path) -> None:
    file.write_text('allowed_hosts = ["a.example", "b.example"]\nallowed_origins = "https://c.example"\n')
    settings = resolve({}, {}, file).settings
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert settings.allowed_origins == ("https://c.example",)


def test_every_option_has_help_and_an_environment_name() -> None:
    for option in OPTIONS:
        assert option.help
        assert option.environment.startswith("RUNNER_")


def test_an_empty_variable_counts_as_absent(file: Path) -> None:
    file.write_text("port = 5\n")
    resolved = resolve({}, {"RUNNER_PORT": "", "RUNNER_SOCKET": ""}, file)
    assert resolved.settings.port == 5
    assert resolved.origins["socket"] is Origin.DEFAULT


def test_a_fault_in_the_file_names_the_file_and_the_key(file: Path) -> None:
    file.write_text("port = 70000\nlog_level = 3\nallowed_hosts = [1]\nthreads = 1.5\n")
    with pytest.raises(StartRefused) as refusal:
        resolve({}, {}, file)
    assert str(refusal.value).splitlines()[1:] == [
        f"  {file}: log_level: a text is due",
        f"  {file}: allowed_hosts: strings are due",
        f"  {file}: threads: a whole number or a text is due",
        f"  {file}: port: 70000 is outside 0 to 65535",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", True),
        ("spare_worker = false", False),
        ("spare_worker = true", True),
        ('spare_worker = "no"', False),
    ],
)
def test_a_truth_value_in_the_file_is_one(file: Path, line: str, expected: bool) -> None:
    file.write_text(f"{line}\n")
    assert resolve({}, {}, file).settings.spare_worker is expected


def test_a_truth_value_from_the_environment_is_a_word(file: Path) -> None:
    assert resolve({}, {"RUNNER_SPARE_WORKER": "False"}, None).settings.spare_worker is False
    assert_accepts(file, "spare_worker", "1", True)
    assert_accepts(file, "spare_worker", "maybe", False)


def test_a_truth_value_is_no_number(file: Path) -> None:
    file.write_text("port = true\nspare_worker = 1\n")
    with pytest.raises(StartRefused) as refusal:
        resolve({}, {}, file)
    assert str(refusal.value).splitlines()[1:] == [
        f"  {file}: port: a whole number or a text is due",
        f"  {file}: spare_worker: true or false or a text is due",
    ]


@pytest.mark.parametrize(
    ("text", "is_accepted"), [("-1", False), ("0", True), ("65535", True), ("65536", False)]
)
def test_the_range_of_ports(file: Path, text: str, is_accepted: bool) -> None:
    assert_accepts(file, "port", text, is_accepted)


@pytest.mark.parametrize(("size", "is_accepted"), [(106, True), (107, True), (108, False)])
def test_the_length_of_the_path_of_a_socket(file: Path, size: int, is_accepted: bool) -> None:
    assert_accepts(file, "socket", "/" + "x" * (size - 1), is_accepted)


@pytest.mark.parametrize(
    ("text", "is_accepted"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("box.example", False),
        ("127.0.0.1:80", False),
    ],
)
def test_an_address_to_listen_on(file: Path, text: str, is_accepted: bool) -> None:
    assert_accepts(file, "host", text, is_accepted)


@pytest.mark.parametrize("text", ["*", "*.example", "a b", "http://box", "box/", "box:port"])
def test_what_is_no_host_name_is_refused(file: Path, text: str) -> None:
    assert_accepts(file, "allowed_hosts", text, False)


@pytest.mark.parametrize(
    "text", ["*", "null", "https://*", "https://*.example", "box", "https://box/", "https://a@b"]
)
def test_N03_what_is_no_browser_origin_is_refused(file: Path, text: str) -> None:
    assert_accepts(file, "allowed_origins", text, False)


def test_origins_are_compared_as_browsers_send_them(file: Path) -> None:
    text = "HTTPS://App.Example:443, http://localhost:80,http://[::1]:8080,tauri://localhost"
    assert resolve({"allowed_origins": text}, {}, file).settings.allowed_origins == (
        "https://app.example",
        "http://localhost",
        "http://[::1]:8080",
        "tauri://localhost",
    )


def test_paths_are_absolute_and_know_the_home_directory(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    settings = resolve({"store": "~/models", "log_file": "here.log"}, {}, file).settings
    assert settings.store == Path("/home/me/models")
    assert settings.log_file == tmp_path / "here.log"


@pytest.mark.parametrize("text", ["", "a\0b", "~nobody-of-this-name/x"])
def test_what_is_no_path_is_refused(file: Path, text: str) -> None:
    assert_accepts(file, "store", text, False)


def test_a_version_is_a_number(file: Path) -> None:
    file.write_text("version = true\n")
    with pytest.raises(StartRefused, match="version"):
        resolve({}, {}, file)
    file.write_text("version = 1\nport = 7\n")
    assert resolve({}, {}, file).settings.port == 7


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="Is a directory"):
        resolve({}, {}, tmp_path)


@given(st.dictionaries(st.sampled_from([option.name for option in OPTIONS]), st.text(max_size=20)))
def test_any_flags_give_settings_or_the_one_refusal(flags: dict[str, str]) -> None:
    try:
        resolved = resolve(flags, {}, Path("/dev/null"))
    except StartRefused as refusal:
        assert str(refusal).count("\n  --") <= len(flags)
    else:
        assert all(resolved.origins[name] is Origin.FLAG for name in flags)


def assert_accepts(file: Path, option: str, text: str, is_accepted: bool) -> None:
    if is_accepted:
        resolve({option: text}, {}, file)
    else:
        with pytest.raises(StartRefused, match=option.replace("_", "-")):
            resolve({option: text}, {}, file)


# registries


def test_registries_come_as_text_or_as_lists_or_tables(file: Path) -> None:
    text = "reg.example:5000=/a.pem, other.example=/b.pem"
    wanted = (("reg.example:5000", Path("/a.pem")), ("other.example", Path("/b.pem")))
    assert resolve({"registry_ca_files": text}, {}, file).settings.registry_ca_files == wanted
    file.write_text('[registry_ca_files]\n"reg.example:5000" = "/a.pem"\n"other.example" = "/b.pem"\n')
    assert resolve({}, {}, file).settings.registry_ca_files == wanted
    file.write_text('registry_ca_files = ["reg.example:5000=/a.pem", "other.example=/b.pem"]\n')
    assert resolve({}, {}, file).settings.registry_ca_files == wanted


def test_a_registry_may_have_several_mirrors(file: Path) -> None:
    file.write_text('[registry_mirrors]\n"docker.io" = ["https://a.example/v2", "b.example:5000"]\n')
    assert resolve({}, {}, file).settings.registry_mirrors == (
        ("docker.io", "https://a.example/v2"),
        ("docker.io", "b.example:5000"),
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("insecure_registries", "http://reg.example"),
        ("insecure_registries", "*"),
        ("unverified_registries", "reg.example/path"),
        ("private_registries", "10.0.0.0/8"),
        ("registry_ca_files", "/a.pem"),
        ("registry_ca_files", "reg.example="),
        ("registry_ca_files", "=/a.pem"),
        ("registry_mirrors", "docker.io=ftp://a.example"),
        ("registry_mirrors", "docker.io=https://user:secret@a.example"),
        ("registry_realms", "reg.example=https://auth.example/token"),
        ("hub_endpoint", "huggingface.co"),
        ("hub_endpoint", "https://user:secret@hub.example"),
        ("transfers_at_once", "0"),
        ("transfers_at_once", "17"),
        ("connections", "0"),
        ("connections", "65"),
        ("disk_reserve", "much"),
        ("cache_disk", "on"),
        ("cache_disk", "-1"),
    ],
)
def test_what_names_no_registry_is_refused(file: Path, name: str, text: str) -> None:
    with pytest.raises(StartRefused, match=f"--{name.replace('_', '-')}"):
        resolve({name: text}, {}, file)


def test_registries_by_default(file: Path) -> None:
    settings = resolve({}, {}, file).settings
    assert settings.insecure_registries == () == settings.unverified_registries
    assert (settings.transfers_at_once, settings.connections) == (2, 12)
    assert settings.disk_reserve_bytes == 2**30
    assert settings.hub_endpoint == "https://huggingface.co"


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("off", 0), ("0", 0), ("2GiB", 2 * 2**30), (None, 4 * 2**30)]
)
def test_what_is_saved_of_caches_has_a_size_or_is_off(file: Path, text: str | None, size_bytes: int) -> None:
    assert resolve({"cache_disk": text}, {}, file).settings.cache_disk_bytes == size_bytes


def test_registries_are_compared_in_lower_case(file: Path) -> None:
    assert resolve({"insecure_registries": "Reg.Example:80"}, {}, file).settings.insecure_registries == (
        "reg.example:80",
    )


def test_the_variable_of_other_programs_counts_when_nobody_has_told_us_anything_else(file: Path) -> None:
    environment = {"HF_ENDPOINT": "https://mirror.example/"}
    assert resolve({}, environment, file).settings.hub_endpoint == "https://mirror.example"
    file.write_text('hub_endpoint = "https://file.example"')
    assert resolve({}, environment, file).settings.hub_endpoint == "https://file.example"
    environment["RUNNER_HUB_ENDPOINT"] = "https://ours.example"
    assert resolve({}, environment, file).settings.hub_endpoint == "https://ours.example"


def test_a_fault_in_the_variable_of_other_programs_names_it(file: Path) -> None:
    with pytest.raises(StartRefused, match="HF_ENDPOINT: 'mirror' is not a URL"):
        resolve({}, {"HF_ENDPOINT": "mirror"}, file)
