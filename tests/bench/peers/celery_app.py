"""Celery at its best settings.

`python -m celery --app celery_app worker` works; `python -m celery_app QUEUE` puts one task into a queue, as a
sample.

Tried, on two cores shared with broker and client:
- pool: `solo` needs 0.7 times the worker's CPU time of `prefork` and 0.8 times that of `threads` where the
  model takes next to nothing; where it takes milliseconds, `prefork` overlaps it with the messages. PEER_POOL
  names the one to use.
- serializer: msgpack and pickle cost the same; as root, Celery refuses to run with pickle.
- a prefetch of 32 to 512, heartbeats on or off, the queue's type: no difference beyond noise.
- a queue with priorities (PEER_MAX_PRIORITY): what the worker has taken ahead (PEER_PREFETCH) goes first all the
  same, so that premium's wait and the rate are a trade: the comparison in a flood shows three.
- results: transient and unconfirmed, as `rpc://` has them by default. With confirms, each of which Celery
  awaits, 0.6 of the rate was left: that is what the fleet's guarantee would cost here.
"""

import os
import sys
from pathlib import Path

from celery import Celery
from celery.signals import worker_process_init, worker_ready
from kombu import Exchange, Queue

from model import Model


def queue_named(name: str, **options: object) -> Queue:
    # The default exchange is the broker's shortest way.
    return Queue(name, Exchange(""), routing_key=name, **options)


arguments: dict[str, object] = {"x-queue-type": os.environ["PEER_QUEUE_TYPE"]}
max_priority = os.environ.get("PEER_MAX_PRIORITY")
if max_priority:
    arguments["x-max-priority"] = int(max_priority)

app = Celery("peer", broker=os.environ["PEER_AMQP_URL"], backend="rpc://")
app.conf.update(
    task_queues=[queue_named(os.environ["PEER_QUEUE"], queue_arguments=arguments)],
    task_default_queue=os.environ["PEER_QUEUE"],
    task_acks_late=True,
    task_serializer="msgpack",
    result_serializer="msgpack",
    accept_content=["msgpack"],
    # One instance, as the fleet's worker has.
    worker_concurrency=1,
    worker_pool=os.environ["PEER_POOL"],
    worker_prefetch_multiplier=int(os.environ.get("PEER_PREFETCH", "128")),
    worker_enable_remote_control=False,
    worker_send_task_events=False,
)
model: Model | None = None


@worker_process_init.connect
def load_model(**_: object) -> None:
    global model
    model = Model()


@app.task(name="infer")
def infer(row: bytes) -> bytes:
    assert model is not None, "every process of the pool loads the model first"
    return model.run([row])[0]


@worker_ready.connect
def announce(**_: object) -> None:
    print("ready", flush=True)


if __name__ == "__main__":
    row = Path(os.environ["PEER_ROW"]).read_bytes()
    # Without a printable copy of the arguments among the headers.
    infer.apply_async((row,), queue=queue_named(sys.argv[1]), argsrepr="-")
    print("ready", flush=True)
