"""`samovar segment`, against a gateway whose masks can be foretold, and on its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from samovar.segment import command
from tests.conftest import free_port
from tests.gateway.stack import Stack, picture, running_stack
from tests.photographs import photograph
from tests.samovar.processes import run_samovar

BOX = "10,5,30,25"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of 64 x 48 pixels."""
    path = tmp_path / "photo.png"
    path.write_bytes(picture())
    return path


def run(stack: Stack | str, *arguments: str | Path, stdin: bytes | None = None) -> Result:
    """Run the command against a server."""
    url = stack if isinstance(stack, str) else f"http://127.0.0.1:{stack.port}"
    return CliRunner().invoke(command, ["--server", url, *map(str, arguments)], input=stdin)


def test_what_is_printed(stack: Stack, photo: Path) -> None:
    """Each mask is told with its score, its share of the picture and where it is."""
    done = run(stack, photo, "--box", BOX, "--multimask")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "64 x 48 pixels, model vit_b",
        "mask 1: score 0.500, 13.0% of the picture, in the box 10,5,30,25",
        "mask 2: score 0.875, 13.0% of the picture, in the box 10,5,30,25",
        "mask 3: score 0.750, 13.0% of the picture, in the box 10,5,30,25",
    ]


def test_points_and_a_box_are_one_prompt(stack: Stack, photo: Path) -> None:
    """Points carry a label, on the object unless it says otherwise."""
    done = run(stack, photo, "--point", "20,10", "--point", "3.5,4,0", "--box", BOX)
    assert done.exit_code == 0, done.output
    (prompt,) = stack.decoder.calls[-1].prompts
    assert [(point.x, point.y, point.label) for point in prompt.points] == [(20, 10, 1), (3.5, 4, 2)]
    assert prompt.box.x_max == 30


def test_files(stack: Stack, photo: Path, tmp_path: Path) -> None:
    """A mask is written as PNG and as COCO's JSON, and drawn over its picture, all in one call."""
    png, coco, overlay = tmp_path / "mask.png", tmp_path / "mask.json", tmp_path / "overlay.png"
    done = run(stack, photo, "--box", BOX, "-o", png, "-o", coco, "--overlay", overlay)
    assert done.exit_code == 0, done.output
    mask = cv2.imdecode(np.frombuffer(png.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    expected = np.zeros((48, 64), np.uint8)
    expected[5:25, 10:30] = 255
    assert mask is not None
    np.testing.assert_array_equal(mask, expected)
    (annotation,) = json.loads(coco.read_text())["masks"]
    assert (annotation["area"], annotation["bbox"], annotation["score"]) == (400, [10, 5, 20, 20], 0.5)
    drawn = np.asarray(Image.open(overlay))
    assert drawn.shape == (48, 64, 3)
    # The picture is black: what is drawn is the mask's colour, full at its edge, half inside, and none elsewhere.
    assert drawn[5, 20].tolist() == [0, 114, 178]
    assert drawn[15, 20].tolist() == [0, 57, 89]
    assert drawn[40, 50].tolist() == [0, 0, 0]
    assert len(stack.decoder.calls) == 2


def test_everything(stack: Stack, photo: Path, tmp_path: Path) -> None:
    """--everything writes all that a grid finds, like any other masks, with the thresholds that are given."""
    coco = tmp_path / "all.json"
    options = ["--points-per-side", "2", "--min-score", "0.25", "--min-stability", "0.5"]
    done = run(stack, photo, "--everything", *options, "-o", coco)
    assert done.exit_code == 0, done.output
    assert [line.split(":")[0] for line in done.stdout.splitlines()[1:5]] == [
        f"mask {number}" for number in (1, 2, 3, 4)
    ]
    assert [mask["score"] for mask in json.loads(coco.read_text())["masks"]] == [0.5] * 4
    asked = stack.decoder.everything
    assert (asked.points_per_side, asked.pred_iou_threshold, asked.stability_score_threshold) == (2, 0.25, 0.5)


@pytest.mark.parametrize(
    "arguments", [["--everything", "--box", BOX], ["--everything", "--multimask"], ["--box", BOX, "--min-score", "0.5"]]
)
def test_everything_goes_alone(stack: Stack, photo: Path, arguments: list[str]) -> None:
    """Prompts beside --everything, and its options without it, are mistakes that are told."""
    done = run(stack, photo, *arguments)
    assert done.exit_code == 2
    assert "--everything" in done.stderr


def test_several_masks_are_files_of_their_own(stack: Stack, photo: Path, tmp_path: Path) -> None:
    """Two boxes give two masks, numbered."""
    done = run(stack, photo, "--box", BOX, "--box", "0,0,5,5", "-o", tmp_path / "mask.png")
    assert f"wrote {tmp_path / 'mask-2.png'}" in done.stdout
    areas = [int(np.asarray(Image.open(tmp_path / f"mask-{number}.png")).astype(bool).sum()) for number in (1, 2)]
    assert areas == [400, 25]


def test_json(stack: Stack, photo: Path, tmp_path: Path) -> None:
    """With --json, standard output is one object that says everything."""
    done = run(stack, "-", "--box", BOX, "--json", "-o", tmp_path / "m.png", stdin=photo.read_bytes())
    body = json.loads(done.stdout)
    assert (body["original_size"], body["model"], body["files"]) == ([48, 64], "vit_b", [str(tmp_path / "m.png")])
    assert body["masks"][0]["segmentation"]["size"] == [48, 64]
    assert body["time_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a --point, a --box or"),
        (["--point", "1"], "'1' is not of the form X,Y[,LABEL]"),
        (["--box", "1,2,3,x"], "is not of the form X0,Y0,X1,Y1"),
        (["--point", "1,2", "--box", BOX, "--box", BOX], "Points go with one box"),
        (["--box", BOX, "-o", "mask.bmp"], "ends in none of .png, .json"),
        (["--box", BOX, "-o", "nowhere/mask.png"], "there is no folder nowhere"),
        (["--box", BOX, "--model", "vit_b"], "for use without --server"),
    ],
)
def test_a_wrong_command_line(photo: Path, arguments: list[str], said: str) -> None:
    """What cannot be meant is refused before anything is sent, with exit status 2."""
    done = run("http://127.0.0.1:1", photo, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_what_is_refused(stack: Stack, tmp_path: Path) -> None:
    """A file that is no picture, one that is not there and a prompt off the rules end with status 3 and one line."""
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    done = run(stack, text, "--box", BOX)
    assert (done.exit_code, done.stderr.count("\n")) == (3, 1)
    assert "Could not load input image" in done.stderr
    missing = run(stack, tmp_path / "missing.jpg", "--box", BOX)
    assert (missing.exit_code, missing.stderr.count("\n")) == (3, 1)
    assert "No such file" in missing.stderr
    as_json = run(stack, text, "--box", BOX, "--json")
    assert json.loads(as_json.stdout)["error"]["reason"] == "IMAGE_UNDECODABLE"
    assert as_json.exit_code == 3


def test_no_server(photo: Path) -> None:
    """A server that is not there ends with status 1 and its address; a URL that is none with 2."""
    url = f"http://127.0.0.1:{free_port()}"
    done = run(url, photo, "--box", BOX)
    assert done.exit_code == 1
    assert url in done.stderr
    assert run("localhost:9001", photo, "--box", BOX).exit_code == 2


def test_keys(photo: Path, tmp_path: Path) -> None:
    """The key is taken from the flag or the environment."""
    with running_stack(tmp_path, ("secret",)) as guarded:
        assert run(guarded, photo, "--box", BOX).exit_code == 3
        assert run(guarded, photo, "--box", BOX, "--api-key", "secret").exit_code == 0


def test_without_a_server(tmp_path: Path) -> None:
    """A model is loaded into the process; the picture is segmented, and nothing is left behind."""
    arguments = ("--point", "380,350", "--model", "starter", "--checkpoint", "random:0")
    done = run_samovar("segment", str(photograph()), *arguments, "-o", "mask.png", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert (body["original_size"], body["model"]) == ([427, 640], "starter")
    mask = np.asarray(Image.open(io.BytesIO((tmp_path / "mask.png").read_bytes())))
    assert mask.shape == (427, 640)
    assert int(mask.astype(bool).sum()) == body["masks"][0]["area"]
    assert done.stderr == ""


def test_without_a_server_or_the_packages_of_one() -> None:
    """Where only the client is installed, a model cannot be loaded, and one line says what to do."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        f"from samovar.segment import command; command.main([{str(photograph())!r}, '--box', '{BOX}'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "the package torch" in done.stderr
    assert "--server" in done.stderr


def test_without_a_server_or_a_model(tmp_path: Path) -> None:
    """A model that cannot be loaded ends with status 1, a name that is none with 2."""
    missing = ("--box", BOX, "--checkpoint", "missing.pth", "--model", "vit_b")
    done = run_samovar("segment", str(photograph()), *missing, folder=tmp_path)
    assert done.returncode == 1
    assert "missing.pth" in done.stderr
    done = run_samovar("segment", str(photograph()), "--box", BOX, "--model", "vit_x", folder=tmp_path)
    assert done.returncode == 2
