"""The gateway of a rerun, a process of its own: TEST_CSV OUT PORT PATIENCE_S.

Gives up when no server answers within PATIENCE_S seconds of its start.
"""

import sys
import time

import grpc
import polars as pl

from kaggle_evaluation.core import ask_all, pack, unpack


def main(test_csv, out, port, patience_s):
    begun = time.monotonic()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    try:
        grpc.channel_ready_future(channel).result(timeout=float(patience_s))
    except grpc.FutureTimeoutError:
        sys.exit(f"no server within {patience_s} s")
    print(f"server: {time.monotonic() - begun:.0f} s", flush=True)
    predict = channel.unary_unary("/kaggle/predict")
    column = "question" if "question" in pl.read_csv(test_csv, infer_schema=False).columns else "problem"
    ask_all(lambda *series: unpack(predict(pack(pl.DataFrame(series)))), test_csv, out, column)
    channel.unary_unary("/kaggle/end")(b"")
    print("submission written")


if __name__ == "__main__":
    main(*sys.argv[1:])
