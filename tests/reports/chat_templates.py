"""Public reports of the area: chat templates."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY

from aimo import config
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.prompts import check_template
from aimo.inference.settings import Settings
from aimo.inference.vllm_process import context_limit
from aimo.train import models

CHATML = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)


def model_with(template):
    """A folder of the tiny base with a template as Qwen2.5's base has it: its turns end in <|im_end|>."""
    folder = shutil.copytree(TINY, Path("model"))
    (folder / "chat_template.jinja").unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    last = max(tokenizer["added_tokens"], key=lambda token: token["id"])
    tokenizer["added_tokens"].append(last | {"id": 725, "content": "<|im_end|>", "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    described = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(described | {"chat_template": template}))
    return folder


def C01(case):
    folder = model_with(CHATML)
    with pytest.raises(AimoError, match=r"set prompt.eos_token to '<\|im_end\|>'"):
        models.load_tokenizer(folder, config.load("tiny", ["prompt.template=model"]))
    taken = config.load("tiny", ["prompt.template=model", "prompt.eos_token=<|im_end|>"])
    assert models.load_tokenizer(folder, taken).eos_token == "<|im_end|>"


def C04(case):
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "[tools]" + CHATML}]
    folder = model_with(named)
    profile = config.load("tiny", ["prompt.template=model", "prompt.eos_token=<|im_end|>"])
    for tokenizer in read_tokenizer(folder), models.load_tokenizer(folder, profile):
        talk = [{"role": "user", "content": "1 + 1?"}]
        assert tokenizer.apply_chat_template(talk, tokenize=False).startswith("<|im_start|>user")
        assert tokenizer.apply_chat_template(talk, tools=[{}], tokenize=False).startswith("[tools]")
        check_template(tokenizer, Settings(), folder)


def C05(case):
    config = {"model_type": "gemma3", "text_config": {"max_position_embeddings": 131072}}
    assert context_limit(config) == 131072


def C02v(case):
    path = Path("bad.jinja").absolute()
    for text in ("{%- for m in messages -%}{{ m.content }", "{{ raise_exception('no') }}", "{{ no.such }}"):
        path.write_text(text)
        with pytest.raises(AimoError, match="cannot be rendered"):
            models.load_tokenizer(TINY, config.load("tiny", [f"prompt.template={path}"]))


def C06v(case):
    rope = {"rope_type": "yarn", "factor": 4.0}
    config = {"model_type": "qwen2", "max_position_embeddings": 32768, "rope_parameters": rope}
    assert context_limit(config) == 131072
