"""A server of one file on this machine, which answers as downloads must expect it to."""

import http.server
import threading


class Server:
    """Serves one file, as told. asked: the ranges that came."""

    def __init__(self):
        self.data, self.asked = b"", []
        self.cut = self.claim = self.code = self.location = None
        self.ranges = True
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        code = self.code or (206 if start else 200)
        if start >= len(self.data) and start:
            code = 416
        request.send_response(code)
        if self.location:
            request.send_header("Location", self.location)
        request.send_header("Content-Range", f"bytes {'*' if code == 416 else start}/{len(self.data)}")
        body = self.data[start:] if code in (200, 206) else b""
        request.send_header("Content-Length", str(self.claim or len(body)))
        request.end_headers()
        request.wfile.write(body[: self.cut])
