"""Token ids with gaps: the largest ones, the end of turn among them, are not taken for padding."""

from pathlib import Path

import pytest
import yaml

from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.atomic import write_json
from nexa_train import easydistill, train_sft
from nexa_train.data.vocabulary import vocabulary_size
from nexa_train.easydistill_jobs.job import load_job
from nexa_train.models import replies
from nexa_train.models.loading import load_for_inference
from tests.easydistill_jobs.test_easydistill import ITEMS, job, white_box
from tests.support.tiny_model import save_model, tokenizer
from tests.training.test_distillation import Distilled
from tests.training.test_train_sft import Run

pytestmark = pytest.mark.usefixtures("float32")
END = 290
QUICK = {"epochs": 16, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def teacher(float32: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It has learned to answer `ITEMS` and to end; its folder."""
    folder = tmp_path_factory.mktemp("teacher")
    save_model(folder / "student", gaps=True)
    write_json(folder / "labeled.json", ITEMS)
    training = {"num_train_epochs": 16, "learning_rate": 0.01}
    easydistill.run(load_job(job(folder, training=training)))
    return folder / "out"


def test_t16_the_size_is_the_largest_id_and_one() -> None:
    assert tokenizer(gaps=True).eos_token_id == END
    assert len(tokenizer(gaps=True)) < END
    assert vocabulary_size(tokenizer(gaps=True)) == END + 1
    assert vocabulary_size(tokenizer()) == len(tokenizer()) == 259


@pytest.mark.parametrize("source", ["cache", "online"])
def test_t16_a_student_learns_from_probabilities_alone_to_end_its_answers(
    teacher: Path, tmp_path: Path, source: str
) -> None:
    """Each student's data is what the teacher was trained on; words count for nothing."""
    run = Distilled(tmp_path, QUICK, source=source, kd_ratio=1.0, top_k=16)
    values = yaml.safe_load(run.config.read_text())
    values["distillation"]["teacher"] = str(teacher)
    values["keep_layers"] = None
    run.config.write_text(yaml.safe_dump(values))
    save_model(run.model, gaps=True)
    run.dataset = teacher / "run/training/sft_dataset.parquet"
    run.here(tmp_path / "out")
    model, tok = load_for_inference(str(tmp_path / "out/final"))
    said = replies.generate_replies(model, tok, ["Say 1.", "Say 2.\n\nNow."], max_new_tokens=20)
    assert [(reply.text, reply.ended) for reply in said] == [("all ok", True)] * 2


def test_t16_a_file_of_probabilities_may_name_the_largest_ids(teacher: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "student", gaps=True)
    write_json(tmp_path / "labeled.json", ITEMS)
    easydistill.run(load_job(white_box(tmp_path, teacher)))
    assert f'"{END}": ' in (tmp_path / "logits.jsonl").read_text()
    again = {"output_dir": str(tmp_path / "again/out")}
    path = white_box(tmp_path, teacher, "kd_white_box_train_only", training=again)
    easydistill.run(load_job(path))
    assert (tmp_path / "again/out/config.json").exists()


def test_t16_a_student_that_answers_itself_can_draw_its_end(tmp_path: Path) -> None:
    run = Run(tmp_path)
    save_model(run.model, gaps=True)
    config = load_yaml(run.config, StudentConfig)
    trainer, _, _ = train_sft._prepare_trainer(
        config, run.storage(), str(run.model), run.dataset, tmp_path / "out", "key", shard=False
    )
    assert trainer.student.vocabulary == END + 1
    assert trainer.student.end == END
