"""Cloud Storage in this process, as far as gcsfs and TensorStore ask for it.

Objects, their generations and the conditions on them, of the JSON API:
https://cloud.google.com/storage/docs/json_api/v1/objects.
"""

from email import message_from_bytes
from http import server
import json
import re
import sys
import threading
from urllib import parse

_PATH = '(/upload|/download)?/storage/v1/b/bucket(/o)?/?(.*)'


class FakeGCS:
  """A bucket named `bucket`; a context manager that gives the environment."""

  def __init__(self):
    self.objects: dict[str, tuple[bytes, int]] = {}  # Contents, generation.
    self.uploads: dict[str, bytearray] = {}  # By their id, which is the name.
    self._generation = 1
    self._lock = threading.Lock()
    store = self

    class Handler(_Handler):
      gcs = store

    self._server = _Server(('localhost', 0), Handler)

  def __enter__(self) -> dict[str, str]:
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    url = f'http://localhost:{self._server.server_address[1]}'
    return {'STORAGE_EMULATOR_HOST': url, 'TENSORSTORE_GCS_HTTP_URL': url}

  def __exit__(self, *exc) -> None:
    self._server.shutdown()
    self._server.server_close()

  def write(self, name: str, contents: bytes | None, condition: str | None):
    """The new generation (None: deleted), or None if it is of another one."""
    with self._lock:
      _, generation = self.objects.get(name, (b'', 0))
      if condition is not None and int(condition) != generation:
        return None
      if contents is None:
        self.objects.pop(name, None)
        return generation
      self._generation += 1
      self.objects[name] = contents, self._generation
      return self._generation


class _Server(server.ThreadingHTTPServer):
  daemon_threads = True

  def handle_error(self, request, client_address) -> None:
    """gcsfs hangs up on the slower of two requests; a killed run on all."""
    if not isinstance(sys.exc_info()[1], ConnectionError):
      super().handle_error(request, client_address)


class _Handler(server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *args) -> None:
    pass

  def _reply(self, code: int, body: bytes | dict = b'', **headers) -> None:
    if isinstance(body, dict):
      body = json.dumps(body).encode()
      headers['Content-Type'] = 'application/json'
    self.send_response(code)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), str(value))
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def _parse(self) -> tuple[str, dict[str, str], bytes]:
    """False, and refused, unless it is of the bucket or of something in it."""
    url = parse.urlsplit(self.path)
    self.query = dict(parse.parse_qsl(url.query))
    self.body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    path = re.fullmatch(_PATH, url.path)
    if path:
      self.listed, self.name = bool(path[2]), parse.unquote(path[3])
    else:
      self._reply(404, {'error': {'code': 404, 'message': 'No such bucket.'}})
    return bool(path)

  def _metadata(self, name: str) -> dict[str, str]:
    contents, generation = self.gcs.objects[name]
    return {
      'kind': 'storage#object',
      'bucket': 'bucket',
      'name': name,
      'size': str(len(contents)),
      'generation': str(generation),
      'metageneration': '1',
      'timeCreated': '2026-01-01T00:00:00.000Z',
      'updated': '2026-01-01T00:00:00.000Z',
    }

  def do_GET(self) -> None:
    if not self._parse():
      return
    if not self.name:
      if self.listed:
        self._list()
      else:
        self._reply(200, {'kind': 'storage#bucket', 'name': 'bucket'})
      return
    if self.name not in self.gcs.objects:
      self._reply(404, {'error': {'code': 404, 'message': 'No such object.'}})
      return
    contents, generation = self.gcs.objects[self.name]
    if self.query.get('ifGenerationNotMatch') == str(generation):
      self._reply(304)
    elif self.query.get('ifGenerationMatch', str(generation)) != str(
      generation
    ):
      self._reply(412)
    elif self.query.get('alt') != 'media':
      self._reply(200, self._metadata(self.name))
    else:
      code, extra = 200, {}
      if asked := re.match(r'bytes=(\d+)-(\d*)', self.headers.get('Range', '')):
        low, size = int(asked[1]), len(contents)
        high = min(int(asked[2]) if asked[2] else size - 1, size - 1)
        code, contents = 206, contents[low : high + 1]
        extra = {'Content_Range': f'bytes {low}-{high}/{size}'}
      self._reply(code, contents, x_goog_generation=generation, **extra)

  def _list(self) -> None:
    prefix = self.query.get('prefix', '')
    delimiter = self.query.get('delimiter')
    low = self.query.get('startOffset', '')
    high = self.query.get('endOffset', '\U0010ffff')
    items, prefixes = [], set()
    for name in sorted(self.gcs.objects):
      if not (name.startswith(prefix) and low <= name < high):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
      else:
        items.append(self._metadata(name))
    self._reply(200, {'items': items, 'prefixes': sorted(prefixes)})

  def do_POST(self) -> None:
    if not self._parse():
      return
    name, contents = self.query.get('name'), self.body
    if copied := re.fullmatch('(.*)/rewriteTo/b/bucket/o/(.*)', self.name):
      name, contents = copied[2], self.gcs.objects[copied[1]][0]
    elif self.query.get('uploadType') == 'multipart':
      kind = f'Content-Type: {self.headers["Content-Type"]}\r\n\r\n'
      parts = message_from_bytes(kind.encode() + self.body).get_payload()
      name = json.loads(parts[0].get_payload())['name']
      contents = parts[1].get_payload(decode=True)
    elif self.query.get('uploadType') == 'resumable':
      if 'upload_id' not in self.query:
        self.gcs.uploads[name] = bytearray()
        where = f'http://{self.headers["Host"]}{self.path}'
        self._reply(200, Location=f'{where}&upload_id={parse.quote(name)}')
        return
      self.gcs.uploads[name] += self.body
      if self.headers['Content-Range'].endswith('/*'):
        done = len(self.gcs.uploads[name]) - 1
        self._reply(308, Range=f'bytes=0-{done}')
        return
      contents = bytes(self.gcs.uploads.pop(name))
    if self.gcs.write(name, contents, self.query.get('ifGenerationMatch')):
      found = self._metadata(name)
      self._reply(200, {'done': True, 'resource': found} if copied else found)
    else:
      self._reply(412)

  def do_DELETE(self) -> None:
    if not self._parse():
      return
    if self.name not in self.gcs.objects:
      self._reply(404, {'error': {'code': 404, 'message': 'No such object.'}})
    elif self.gcs.write(self.name, None, self.query.get('ifGenerationMatch')):
      self._reply(204)
    else:
      self._reply(412)
