"""A reverse proxy on this machine: a page below a path, as hosts do it, and a frame around it."""

import http.client

from tests.ui_server import Quiet, listening

PREFIX = "/spaces/demo"
FRAME_PX = 700
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
_FRAME = (
    "<!doctype html><title>embedding</title>"
    f'<iframe title="demo" src="{PREFIX}/?__theme=dark" width="{FRAME_PX}" height="1000"></iframe>'
)


def proxy(port):
    """-> the address of this host; the page on `port` is below `PREFIX`, its frame at /frame."""
    return listening(_Handler, page_port=port)


class _Handler(Quiet):
    def _serve(self):
        if self.path == "/frame":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(_FRAME.encode())
        elif self.path.startswith(PREFIX):
            self._forward(self.path.removeprefix(PREFIX) or "/")
        else:
            self.send_error(404)

    do_GET = do_POST = do_HEAD = _serve

    def _forward(self, path):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        headers |= {"X-Forwarded-Host": self.headers["Host"], "X-Forwarded-Proto": "http"}
        page = http.client.HTTPConnection("127.0.0.1", self.server.page_port)
        try:
            page.request(self.command, path, body or None, headers)
            answer = page.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            self.end_headers()
            # Pieces as they come: the page's news never end.
            while piece := answer.read1(65536):
                self.wfile.write(piece)
                self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the visitor left
        finally:
            page.close()
