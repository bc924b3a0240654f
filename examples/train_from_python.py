"""Train a small LN-CoTFormer in a loop of one's own: `python -m examples.train_from_python`.

Prints the number of parameters and MACs, the loss every 25 steps, the validation loss in nats per token, and
a sample of text. About a minute on a laptop; the text is the documentation that comes with Python. Flags of
main.py change the model and its training: `--n_repeat 5 --iterations 100`.
"""

import sys

import torch

import config
import models
from data import open_corpus
from data.batches import Batches, contiguous_batches
from distributed import choose_device, choose_precision
from errors import run_script
from evaluation.text import stream_texts
from optim.validation import evaluate

FLAGS = """
    --model ln_cotformer --n_layer 4 --n_layer_begin 1 --n_layer_end 1 --n_repeat 3
    --depth_embedding linear_learned --n_embd 128 --n_head 2 --dataset pydoc --vocab_size 320
    --sequence_length 128 --batch_size 8 --acc_steps 1 --iterations 200 --lr 4e-3 --seed 0
"""
PROMPT = "the "


def main() -> None:
    args = config.parse_args([*FLAGS.split(), *sys.argv[1:]])
    torch.manual_seed(args.seed)
    precision = choose_precision(args.dtype, choose_device(args.device))
    model = models.make_model_from_args(args).to(precision.device)
    macs = models.count_macs(args, args.sequence_length)
    print(f"{model.parameter_count():,} parameters, {int(macs):,} MACs for {args.sequence_length} tokens")

    corpus = open_corpus(args.dataset, data_dir=args.data_dir, vocab_size=args.vocab_size)
    windows = corpus.windows("train", args.sequence_length, args.vocab_size)
    batches = Batches(windows, args.batch_size, args.acc_steps, args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.iterations)
    model.train()
    for step in range(args.iterations):
        inputs, targets = (tokens.to(precision.device) for tokens in batches.get(step, 0))
        with precision.autocast():
            loss = model(inputs, targets=targets)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == args.iterations - 1:
            print(f"step {step}: loss {loss.item():.3f}")

    validation = contiguous_batches(corpus.windows("val", args.sequence_length), args.batch_size, 16_000)
    print(f"validation loss {evaluate(model, validation, precision).loss:.3f}")

    model.eval()
    steps = stream_texts(model, corpus.load_tokenizer(), [PROMPT], 100, precision, seed=0, temperature=0.8)
    print(PROMPT + "".join(text for ((text, _),) in steps))


if __name__ == "__main__":
    run_script(main)
