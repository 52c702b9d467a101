# SPDX-License-Identifier: Apache-2.0
"""Images with a C2PA manifest, signed by the C2PA project's own library with a certificate of the moment."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from io import BytesIO

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_MADE_BY_AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def signed(image: bytes, content_type: str, *, thumbnail: bytes = b"") -> bytes:
    """Return `image` with a C2PA manifest in it.

    :param thumbnail: Put into the manifest as a resource, to make it large.
    """
    actions = [{"action": "c2pa.created", "digitalSourceType": _MADE_BY_AI}]
    manifest = {
        "claim_generator_info": [{"name": "tests", "version": "1"}],
        "format": content_type,
        "assertions": [{"label": "c2pa.actions", "data": {"actions": actions}}],
    }
    if thumbnail:
        manifest["thumbnail"] = {"format": "image/jpeg", "identifier": "thumbnail"}
    builder, made = c2pa.Builder(json.dumps(manifest)), BytesIO()
    if thumbnail:
        builder.add_resource("thumbnail", BytesIO(thumbnail))
    builder.sign(_signer(), content_type, BytesIO(image), made)
    return made.getvalue()


@cache
def _signer() -> c2pa.Signer:
    root, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = (_certificate("tests", own, root, is_root=False), _certificate("test root", root, root, is_root=True))
    return c2pa.Signer.from_info(
        c2pa.C2paSignerInfo(
            alg=c2pa.C2paSigningAlg.ES256,
            sign_cert=b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain),
            private_key=own.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            ta_url=None,
        )
    )


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey, *, is_root: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    usage = x509.KeyUsage(not is_root, False, False, False, False, is_root, is_root, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name("test root"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(is_root, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
    )
    if not is_root:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=True)
    return builder.sign(issuer, hashes.SHA256())


def _name(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests")]
    )
