"""Mosec at its best settings: raw bytes as body, one worker process.

Tried: a longest wait of 1, 2, 5 and 10 ms makes no difference beyond noise, since with so many requests in
flight batches are full at once.
"""

from mosec import Server, Worker

from model import MAX_BATCH_SIZE, Model

MAX_WAIT_MS = 5
TIMEOUT_SECONDS = 60


class Inference(Worker):
    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._model = Model()

    # The base class would parse and write JSON.
    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        return self._model.run(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Inference, max_batch_size=MAX_BATCH_SIZE, max_wait_time=MAX_WAIT_MS, timeout=TIMEOUT_SECONDS
    )
    server.run()
