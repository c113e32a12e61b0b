"""Show exported models in the browser: microphone or file to text, a slider of megabytes.

Writes a folder of static files: the page, the models that `espnet-ext export` wrote, and ONNX
Runtime for browsers, which npm fetches (33 MB; checked by SHA-256). Then serves it on 127.0.0.1
until Ctrl+C. The folder works on other static web servers too, also for phones; a microphone needs
https there. Nothing that is said leaves the browser. The models also run in Node.js:

  node exp/demo/transcribe.js exp/demo/models/onnx speech.wav

Example:
  espnet-ext demo exp/onnx --out exp/demo
  espnet-ext demo exp/onnx_4b exp/onnx_8b --out exp/demo --port 8080
"""

import argparse
import contextlib
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("models", nargs="+", type=Path, help="exported folders")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000; 0: any free one)")
    parser.add_argument("--write_only", action="store_true", help="do not serve the folder")
    parser.add_argument(
        "--package", type=Path, metavar="FILE", help="that of ONNX Runtime, if you have it"
    )


def run(args: argparse.Namespace) -> None:
    """Write the folder and serve it."""
    from espnet_ext.export.site import server, write_site

    if args.write_only:
        write_site(args.models, args.out, args.package)
        print(f"demo: {args.out}: written")
        return
    with server(args.out, args.port) as pages:  # before the work: the port may be in use
        write_site(args.models, args.out, args.package)
        print(f"demo: http://127.0.0.1:{pages.server_address[1]} (Ctrl+C ends)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            pages.serve_forever()
