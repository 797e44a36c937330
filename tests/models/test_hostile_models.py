"""A model folder from elsewhere runs no code of its own, and half of one is refused (F39)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nexa_distill.errors import InputError
from nexa_train.data.chat_format import ChatRefused
from nexa_train.data.chat_tokenization import student_format
from nexa_train.models.loading import load_model, load_tokenizer
from tests.support.tiny_model import save_model, tokenizer

OWNED = "raise SystemExit('owned')\n"
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


def test_f39_pickled_weights_are_refused_unread(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"w": Evil(tmp_path / "owned")}, model / "pytorch_model.bin")
    with pytest.raises(InputError, match="not a model that can be loaded"):
        load_model(str(model))
    assert not (tmp_path / "owned").exists()


def test_f39_code_in_the_folder_is_not_run(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model",
    }  # fmt: skip
    config["model_type"] = "evil"
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(OWNED)
    with pytest.raises(InputError, match="not a model that can be loaded"):
        load_model(str(model))


def test_f39_a_tokenizer_with_code_of_its_own_is_refused(model: Path) -> None:
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {
        "auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}, "tokenizer_class": "Evil",
    }  # fmt: skip
    path.write_text(json.dumps(config))
    (model / "evil.py").write_text(OWNED)
    try:
        made = load_tokenizer(str(model))
    except InputError:
        return
    assert "evil" not in type(made).__module__


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    ],
)
def test_f39_a_template_that_reaches_for_python_is_refused(template: str) -> None:
    with pytest.raises(ChatRefused) as refused:
        student_format(tokenizer(template))
    assert refused.value.reason == "template_fails"


def test_f39_weights_that_are_not_there_are_not_made_up(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    del weights[name]
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"1 weights are missing.*{name}"):
        load_model(str(model))


@pytest.mark.parametrize("kept", [0, 9, 1000])
def test_f39_half_a_checkpoint_is_refused(model: Path, kept: int) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(InputError, match="not a model that can be loaded"):
        load_model(str(model))
