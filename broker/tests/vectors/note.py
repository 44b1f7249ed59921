"""Writes note.json: a key pair and a signed checkpoint by an independent implementation of Ed25519.

    python3 -m venv venv && venv/bin/pip install cryptography==50.0.2
    venv/bin/python broker/tests/vectors/note.py > broker/tests/vectors/note.json
"""

import base64
import hashlib
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

NAME = "example.org/duo"
SEED = bytes([7] * 32)

key = Ed25519PrivateKey.from_private_bytes(SEED)
public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
id = hashlib.sha256(NAME.encode() + b"\n\x01" + public).digest()[:4]
text = f"{NAME}\n5\n{base64.b64encode(bytes([9] * 32)).decode()}\ntime 2026-01-31T12:00:00Z\n"
signature = base64.b64encode(id + key.sign(text.encode())).decode()
print(json.dumps({
    "signer": f"PRIVATE+KEY+{NAME}+{id.hex()}+{base64.b64encode(bytes([1]) + SEED).decode()}",
    "verifier": f"{NAME}+{id.hex()}+{base64.b64encode(bytes([1]) + public).decode()}\n",
    "note": f"{text}\n\u2014 {NAME} {signature}\n",
}, indent=1))
