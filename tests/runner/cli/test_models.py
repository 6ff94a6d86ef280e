"""`ls`, `inspect`, `tag`, `untag`, `rm`."""

from __future__ import annotations

import json
import time

import attrs

from runner.domain.status import LayerSummary, ModelReport, Removal
from tests.support.control import ID, SHORT_ID, Cli, model_summary
from tests.support.scripted_server import refusal

DEL = "DELETE /control/v1/models"


def test_ls_prints_a_row_for_each_name(cli: Cli) -> None:
    cli.routes["GET /control/v1/models"] = [
        model_summary(created_s=int(time.time()) - 7200),
        model_summary(
            tags=("docker.io/ai/b:latest", "registry.example:5000/team/b:v1"),
            context_size=4096,
            trained_context_size=None,
        ),
        model_summary(tags=(), name=SHORT_ID, trained_context_size=None, parameters="", quantization=""),
    ]
    ended = cli("ctl", "ls")
    assert ended.status == 0
    header, *rows = ended.stdout.splitlines()
    assert header.split() == [
        "NAME", "PARAMETERS", "QUANTIZATION", "ARCHITECTURE", "CONTEXT", "ID", "CREATED", "SIZE", "STATE",
    ]  # fmt: skip
    assert rows[0].split("  ")[0] == "ai/smollm2:135M-Q4_1"
    assert "2 hours ago  93.8 MiB" in rows[0]
    assert rows[1].split()[:5] == ["ai/b", "134.52M", "MOSTLY_Q4_1", "llama", "4096"]
    assert rows[2].split()[0] == "registry.example:5000/team/b:v1"
    assert rows[3].split() == ["<none>", "llama", SHORT_ID, "93.8", "MiB"]


def test_L06_ls_and_inspect_mark_a_model_in_quarantine(cli: Cli) -> None:
    why = "2 loads crashed the engine, the last by signal SIGSEGV"
    cli.routes["GET /control/v1/models"] = [model_summary(), model_summary(quarantine=why)]
    _, healthy, ill = cli("ctl", "ls").stdout.splitlines()
    assert healthy.endswith("MiB") and ill.endswith("MiB  quarantined")
    told = attrs.evolve(report(), model=model_summary(quarantine=why))
    cli.routes["GET /control/v1/models/ai/a"] = told
    assert why in cli("ctl", "inspect", "ai/a").stdout


def test_inspect_shows_labels(cli: Cli) -> None:
    cli.routes["GET /control/v1/models/ai/a"] = attrs.evolve(report(), labels={"org.example.team": "blue\n"})
    lines = cli("ctl", "inspect", "ai/a").stdout.splitlines()
    assert lines[lines.index("Labels:") + 1] == "  org.example.team  blue"


def test_columns_are_aligned(cli: Cli) -> None:
    cli.routes["GET /control/v1/models"] = [
        model_summary(tags=("docker.io/ai/a:latest",)),
        model_summary(tags=("docker.io/ai/much-longer:latest",)),
    ]
    lines = cli("ctl", "ls").stdout.splitlines()
    assert len({line.index("134.52M") for line in lines[1:]} | {lines[0].index("PARAMETERS")}) == 1
    assert not any(line.endswith(" ") for line in lines)


def test_ls_quiet_prints_ids(cli: Cli) -> None:
    cli.routes["GET /control/v1/models"] = [model_summary(tags=("docker.io/ai/a:1", "docker.io/ai/a:2"))]
    assert cli("ctl", "ls", "-q").stdout == f"{SHORT_ID}\n"


def test_ls_for_programs_is_the_answer_of_the_api(cli: Cli) -> None:
    cli.routes["GET /control/v1/models"] = [model_summary()]
    assert json.loads(cli("ctl", "ls", "--json").stdout)[0]["id"] == ID


def report(**metadata: str) -> ModelReport:
    return ModelReport(
        model=model_summary(context_size=2048),
        manifest_digest=ID,
        config_digest=ID,
        layers=(
            LayerSummary(
                media_type="application/vnd.docker.ai.gguf.v3", digest=ID, size_bytes=1024, filename="m.gguf"
            ),
            LayerSummary(
                media_type="application/vnd.docker.ai.license", digest=ID, size_bytes=9, filename=None
            ),
        ),
        licenses=("Apache License 2.0",),
        metadata={"general.name": "SmolLM2", **metadata},
    )


def test_inspect_prints_everything_once(cli: Cli) -> None:
    cli.routes["GET /control/v1/models/smollm2:135M-Q4_1"] = report()
    lines = cli("ctl", "inspect", "smollm2:135M-Q4_1").stdout.splitlines()
    assert lines[0] == "Names         ai/smollm2:135M-Q4_1"
    assert "Context       2048 packaged, 8192 trained" in lines
    assert "Licenses      Apache License 2.0" in lines
    assert f"  {ID}  1.0 KiB  application/vnd.docker.ai.gguf.v3  m.gguf" in lines
    assert "  general.name  SmolLM2" in lines


def test_inspect_shortens_long_values_but_not_for_programs(cli: Cli) -> None:
    cli.routes["GET /control/v1/models/m"] = report(tokenizer="x" * 500, template="two\nlines")
    shown = cli("ctl", "inspect", "m").stdout
    assert "x" * 99 + "…" in shown
    assert "x" * 100 not in shown
    assert "two lines" in shown
    assert json.loads(cli("ctl", "inspect", "m", "--json").stdout)["metadata"]["tokenizer"] == "x" * 500


def test_names_are_escaped_on_their_way(cli: Cli) -> None:
    cli.routes["GET /control/v1/models/a%3Fb%23c%25d%20e"] = report()
    assert cli("ctl", "inspect", "a?b#c%d e").status == 0


def test_a_model_that_is_not_there_exits_with_4_and_a_hint(cli: Cli) -> None:
    cli.routes["GET /control/v1/models/m"] = lambda _: refusal(
        404, "model_not_found", "model 'm' is not there"
    )
    ended = cli("ctl", "inspect", "m")
    assert ended.status == 4
    assert ended.stdout == ""
    assert ended.stderr.splitlines() == [
        "error: model 'm' is not there",
        "hint: `runner ctl ls` lists the models; `runner ctl pull NAME` fetches one",
    ]


def test_a_short_id_with_several_candidates_gets_a_hint(cli: Cli) -> None:
    cli.routes["GET /control/v1/models/0123456"] = lambda _: refusal(409, "ambiguous", "may mean a, b")
    ended = cli("ctl", "inspect", "0123456")
    assert ended.status == 1
    assert ended.stderr.endswith("hint: write more digits of the id\n")


def test_tag_and_untag_tell_what_the_name_means(cli: Cli) -> None:
    cli.routes["POST /control/v1/tag"] = model_summary()
    cli.routes["POST /control/v1/untag"] = model_summary()
    assert cli("ctl", "tag", "a", "b").stderr == f"b now names {SHORT_ID}\n"
    assert cli("ctl", "untag", "b").stderr == f"b no longer names {SHORT_ID}\n"
    assert cli.sent("POST /control/v1/tag") == [{"source": "a", "target": "b"}]
    assert cli.sent("POST /control/v1/untag") == [{"target": "b"}]
    assert json.loads(cli("ctl", "tag", "a", "b", "--json").stdout)["id"] == ID
    assert json.loads(cli("ctl", "untag", "b", "--json").stdout)["id"] == ID


def test_rm_tells_each_step(cli: Cli) -> None:
    cli.routes[f"{DEL}/a?force=false"] = [Removal(untagged="docker.io/ai/a:latest"), Removal(deleted=ID)]
    ended = cli("ctl", "rm", "a")
    assert ended.status == 0
    assert ended.stdout == f"untagged ai/a\ndeleted {ID}\n"


def test_rm_force_is_passed_on(cli: Cli) -> None:
    cli.routes[f"{DEL}/a?force=true"] = [Removal(deleted=ID)]
    assert json.loads(cli("ctl", "rm", "-f", "a", "--json").stdout) == [{"untagged": None, "deleted": ID}]


def test_rm_goes_on_after_a_failure_and_then_exits_with_1(cli: Cli) -> None:
    cli.routes[f"{DEL}/a?force=false"] = lambda _: refusal(409, "model_in_use", "a is loaded")
    cli.routes[f"{DEL}/b?force=false"] = [Removal(untagged="docker.io/ai/b:latest")]
    ended = cli("ctl", "rm", "a", "b")
    assert ended.status == 1
    assert ended.stderr == "error: a is loaded\n"
    assert ended.stdout == "untagged ai/b\n"


def test_rm_of_one_model_fails_as_other_commands_do(cli: Cli) -> None:
    cli.routes[f"{DEL}/a?force=false"] = lambda _: refusal(409, "model_in_use", "a is loaded")
    ended = cli("ctl", "rm", "a")
    assert ended.status == 1
    assert ended.stderr.splitlines() == [
        "error: a is loaded",
        "hint: `runner ctl unload` unloads a model when its requests have ended",
    ]


def test_K06_names_and_metadata_reach_the_terminal_harmlessly(cli: Cli) -> None:
    hostile = "ai/x\x1b]0;title\x07\x9b31m\u202eevil\nNAME"
    cli.routes["GET /control/v1/models"] = [model_summary(tags=(hostile,), quantization=hostile)]
    cli.routes["GET /control/v1/models/m"] = report(**{hostile: hostile})
    for arguments in (["ls"], ["inspect", "m"], ["ls", "--json"], ["inspect", "m", "--json"]):
        shown = cli("ctl", *arguments).stdout
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)
        assert "\nNAME" not in shown[1:]


def test_K06_errors_reach_the_terminal_harmlessly(cli: Cli) -> None:
    cli.routes["GET /control/v1/models"] = lambda _: refusal(500, "internal_error", "\x1b[2J\u202eoops\x9c")
    assert cli("ctl", "ls").stderr.splitlines()[0] == r"error: \x1b[2J\u202eoops\x9c"


def test_a_model_is_looked_at_where_it_is(cli: Cli) -> None:
    remote = attrs.evolve(report(), model=model_summary(name="r.example/m:v1", tags=()), licenses=())
    cli.routes["POST /control/v1/remote"] = remote
    ended = cli("ctl", "inspect", "--remote", "r.example/m:v1")
    assert ended.status == 0
    assert ended.stdout.splitlines()[0].split() == ["Name", "r.example/m:v1"]
    assert "Licenses" not in ended.stdout
    assert cli.sent("POST /control/v1/remote") == [{"reference": "r.example/m:v1"}]
    cli.routes["POST /control/v1/remote"] = attrs.evolve(remote, model=attrs.evolve(remote.model, id=""))
    assert "known when it has been pulled" in cli("ctl", "inspect", "-r", "hf.co/a/b").stdout
