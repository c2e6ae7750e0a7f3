"""A server whose answers come at moments set beforehand, and which writes down when they went out:
what load tools measure of it is known. It speaks as much of OpenAI's chat as they need.
"""

import asyncio
import json
import threading
import time

# Far above what a busy machine adds to a timer: a twentieth of it is what tools may differ by.
PREFILLS_S = [0.3, 0.4, 0.5]
GAP_S = 0.1


class PacedServer:
    """Serves on a free port, on a thread of its own, while the block of a `with` runs."""

    def __init__(self):
        self.port = None
        # Of each answer: when its request was read, and when each token was written.
        self.answers = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def take(self):
        """The answers since the last time."""
        answers, self.answers = self.answers, []
        return answers

    def _run(self):
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connection, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()

    async def _connection(self, reader, writer):
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _request(self, reader, writer):
        line = await reader.readline()
        if not line:
            return False
        method, path, _ = line.decode().split(" ")
        n_bytes = 0
        while (header := (await reader.readline()).decode().strip()):
            name, value = header.split(":", 1)
            if name.lower() == "content-length":
                n_bytes = int(value)
        body = await reader.readexactly(n_bytes)
        if (method, path) == ("POST", "/v1/chat/completions"):
            await self._answer(writer, json.loads(body))
        elif path == "/v1/models":
            self._whole(writer, "200 OK", {"object": "list", "data": [{"id": "paced"}]})
        else:
            self._whole(writer, "404 Not Found", {"error": {"message": "no such path"}})
        await writer.drain()
        return True

    @staticmethod
    def _whole(writer, status, value):
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def _answer(self, writer, body):
        arrived = time.perf_counter()
        moments = []
        self.answers.append((arrived, moments))
        prefill_s = PREFILLS_S[len(self.answers) % len(PREFILLS_S)]
        n_tokens = body.get("max_completion_tokens") or body["max_tokens"]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\n")
        for idx in range(n_tokens):
            due = arrived + prefill_s + idx * GAP_S
            await asyncio.sleep(max(0, due - time.perf_counter()))
            delta = {"role": "assistant", "content": " word"}
            moments.append(time.perf_counter())
            self._event(writer, {"choices": [{"index": 0, "delta": delta}]})
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
        self._event(writer, end)
        usage = {"prompt_tokens": 40, "completion_tokens": n_tokens, "total_tokens": 40 + n_tokens}
        self._event(writer, {"choices": [], "usage": usage})
        self._chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    def _event(self, writer, value):
        common = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "paced"}
        self._chunk(writer, b"data: " + json.dumps(common | value).encode() + b"\n\n")

    @staticmethod
    def _chunk(writer, data):
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
