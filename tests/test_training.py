import json

from aimo.training import last_checkpoint


def test_a_checkpoint_cut_off_while_it_was_written_is_removed_and_the_one_before_is_used(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in ((50, json.dumps({"global_step": 50})), (100, json.dumps({"global_step": 100})), (150, '{"global_st'), (200, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-50"]
