"""moto's S3 server: PORT DOWN KIB_A_SECOND. While the file DOWN is there it answers 503; 0 KiB a second: no limit."""

import sys
import time
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple


class Unsteady:
    """The server's WSGI application, with its outages."""

    def __init__(self, down: Path, kib_a_second: float) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.down, self.rate = down, kib_a_second * 1024

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if self.down.exists():
            self.down.write_text(str(int(self.down.read_text() or 0) + 1))
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if self.rate:
            time.sleep(int(environ.get("CONTENT_LENGTH") or 0) / self.rate)
        return self.app(environ, start_response)


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), Unsteady(Path(sys.argv[2]), float(sys.argv[3])), threaded=True)
