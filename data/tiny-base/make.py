"""The tiny base: a Qwen3 model of 1.7 million parameters, trained from random weights on built-in problems.

Like a large base model it has seen the same problems answered in several ways: a bare answer, a worked
answer, and the tagged format with and without a thought. It can work a problem out, but does so only
sometimes; format SFT and GRPO change that.

    python data/tiny-base/make.py [--out FOLDER] [--seed 0] [--steps 3000]
"""

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_cosine_schedule_with_warmup,
)

from aimo.config import Prompt
from aimo.data.sources import WordProblem, generate, stream
from aimo.evaluation.scores import sample_rows
from aimo.inference import prompts
from aimo.inference.engine import Engine
from aimo.run import machine
from aimo.run.runs import quiet
from aimo.train.models import chat_template

ABOUT = """\
on the built-in problems of `aimo.data.sources` alone. It has seen each kind of problem answered
at once, worked out, and in tags; it can work a problem out, and does so only sometimes."""
VOCABULARY = 768
CONTEXT = 1024
STEPS = 3000
BATCH = 128
LEARNING_RATE = 2e-3
# A digit, a word or a run of signs, each with the space before it: numbers are read digit by digit.
PIECES = Regex(r" ?[0-9]| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+")
Example = list[tuple[list[int], bool]]
"""A text in parts: the token ids of each, and whether the model is trained to write it."""


def make(
    out: Annotated[Path, typer.Option()] = Path(__file__).parent,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int, typer.Option(min=1)] = STEPS,
) -> None:
    """Train the model, measure it on held-out problems, and write its card."""
    quiet()
    out.mkdir(parents=True, exist_ok=True)
    trained = train(out, seed, steps)
    rows = [
        {"prompt": prompts.as_prompt(p.problem), "answer": p.answer} for p in generate(200, "heldout", seed)
    ]
    with Engine(out, seed=seed) as engine:
        heldout = sample_rows(engine, rows, Prompt(), 16, seed).metrics()
    figures = "200 held-out problems, prompted in the tagged format, temperature 1, 16 samples each:\n\n"
    figures += "| | |\n| --- | --- |\n"
    figures += "".join(f"| {name} | {value:.3g} |\n" for name, value in heldout.items())
    print(write_card("tiny-base", ABOUT, out, seed, steps, trained, figures))


def train(out: Path, seed: int = 0, steps: int = STEPS) -> dict[str, float]:
    """Train and save the model, tokenizer and chat template to `out`; returns its loss and seconds."""
    prompt = Prompt()
    texts = [p.problem + "\n" + p.solution for p in generate(5000, "train", seed)]
    tags = [prompt.think_start, prompt.think_end, prompt.answer_start, prompt.answer_end]
    tokenizer = build_tokenizer(texts, tags, str(chat_template(prompt, None)))
    rng = random.Random(seed)
    examples = (write(tokenizer, p, rng) for p in stream("train", seed))
    return fit(out, tokenizer, examples, seed, steps, BATCH)


def fit(
    out: Path,
    tokenizer: PreTrainedTokenizerFast,
    examples: Iterator[Example],
    seed: int,
    steps: int,
    batch: int,
    hidden: int = 192,
) -> dict[str, float]:
    """Train a model on `batch` examples a step, and save it with its tokenizer to `out`.

    `hidden` is its width. Returns the loss at the end, the seconds and the number of parameters.
    """
    started = time.time()
    torch.manual_seed(seed)
    model = random_model(tokenizer, hidden)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(torch.device(device))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    losses: list[float] = []
    for _ in track(range(steps), description=out.name):
        inputs = collate(list(islice(examples, batch)), tokenizer.pad_token_id)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(**{k: v.to(device) for k, v in inputs.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.cpu().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "loss": sum(losses[-100:]) / len(losses[-100:]),
        "seconds": time.time() - started,
        "parameters": model.num_parameters(),
    }


def random_model(tokenizer: PreTrainedTokenizerFast, hidden: int) -> Qwen3ForCausalLM:
    """A Qwen3 model of four layers with random weights; `hidden` is its width."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=4,
            num_attention_heads=hidden // 32,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def write_card(
    name: str, about: str, out: Path, seed: int, steps: int, trained: dict[str, float], figures: str
) -> str:
    """Write a model's card and return it: what it is, the command, the time, the loss and figures."""
    card = (
        f"---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n\n# {name}\n\n"
        f"A Qwen3 model of {trained['parameters'] / 1e6:.1f} million parameters, trained from random\n"
        f"weights {about}\nIt is there for demonstration and tests.\n\n"
        f"Made by `python data/{name}/make.py --seed {seed} --steps {steps}` in "
        f"{trained['seconds'] / 60:.0f} minutes ({machine.device()}).\n"
        f"Its loss at the end was {trained['loss']:.4f} on what the model writes.\n\n{figures}"
    )
    (out / "README.md").write_text(card)
    return card


def build_tokenizer(
    texts: Iterable[str],
    tags: list[str],
    template: str,
    special: Sequence[str] = ("<|endoftext|>",),
    pieces: Regex = PIECES,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE, so that any text can be encoded, with one token for each tag.

    No token goes across `pieces`. The first of the `special` tokens ends a text, the last is padding; of one
    token alone, `<pad>` is padding, in the place of a byte that UTF-8 never has.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(tags) - 1,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if len(special) == 1:  # Unsloth refuses padding that ends a text, too
        bpe = Tokenizer.from_str(bpe.to_str().replace('"ÿ":', '"<pad>":'))
        bpe.add_special_tokens(["<pad>"])
        special = *special, "<pad>"
    bpe.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=special[0],
        pad_token=special[-1],
        model_max_length=CONTEXT,
        padding_side="left",
        chat_template=template,
    )


def collate(examples: list[Example], padding: int) -> dict[str, torch.Tensor]:
    """A batch of input ids and labels, right-padded; only what the model is to write carries loss."""
    width = max(sum(len(ids) for ids, _ in parts) for parts in examples)
    input_ids = torch.full((len(examples), width), padding)
    labels = torch.full((len(examples), width), -100)
    for i, parts in enumerate(examples):
        begin = 0
        for ids, trained in parts:
            end = begin + len(ids)
            input_ids[i, begin:end] = torch.tensor(ids)
            if trained:
                labels[i, begin:end] = input_ids[i, begin:end]
            begin = end
    # Padding is at the end, so the causal mask already keeps every real token from seeing it.
    return {"input_ids": input_ids, "labels": labels}


def write(tokenizer: Any, p: WordProblem, rng: random.Random) -> Example:
    """A problem answered in one of the four ways: the question, and the reply that is trained."""
    way = rng.random()
    if way < 0.25:
        question, reply = f"{p.problem}\n", f"Answer: {p.answer}"
    elif way < 0.65:
        question, reply = f"{p.problem}\n", f"{p.solution}\nAnswer: {p.answer}"
    else:
        thought = p.solution if way < 0.82 else ""
        question = tokenizer.apply_chat_template(
            prompts.as_prompt(p.problem), tokenize=False, add_generation_prompt=True
        )
        text = prompts.as_completion(Prompt(), thought, p.answer)[0]["content"]
        reply = text.removeprefix(Prompt().think_start)
    return [(tokenizer.encode(question), False), ([*tokenizer.encode(reply), tokenizer.eos_token_id], True)]


if __name__ == "__main__":
    typer.run(make)
