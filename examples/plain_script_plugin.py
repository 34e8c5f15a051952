"""What `pgolf audit` needs to know of plain_script.py: how to load the model, or call its evaluation."""

from plain_script import LENGTH, STRIDE, evaluate_sliding, load

from pgolf.audit.adapter import ForwardLogitsScorer
from pgolf.audit.subject import Claim


def scorer(context):
    """The script's model, in pgolf's own sliding windows."""
    return ForwardLogitsScorer(load(context.artifact).to(context.device), LENGTH, STRIDE)


def evaluator(context):
    """The script's own evaluation loop, which is handed the whole text."""
    model = load(context.artifact)

    def evaluate(tokens, byte_table):
        counts = byte_table.count(tokens[:-1], tokens[1:])
        bpb, nats = evaluate_sliding(model, tokens, counts)
        return Claim(nats=nats.numpy(), bytes=int(counts.sum()), val_bpb=bpb)

    return evaluate
