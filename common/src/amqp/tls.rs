//! Certificates and keys for `amqps`, and what went wrong with them in words that name the key to set.

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};

use super::connection::ConnectError;
use crate::config::sections::Tls;

/// Reads the files that the configuration names.
///
/// # Errors
/// [`ConnectError::TlsFile`], also for a file that does not hold what it should: the client library would leave it out, and the
/// handshake fail for a reason that points elsewhere.
pub(super) fn read(tls: &Tls) -> Result<OwnedTLSConfig, ConnectError> {
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
    let cert_chain = match tls.ca_file.as_str() {
        "" => None,
        path => Some(pem("broker.tls.ca_file", path, &[CERTIFICATE])?),
    };
    let identity = match tls.certificate_file.as_str() {
        "" => None,
        path => Some(OwnedIdentity::PKCS8 {
            pem: pem("broker.tls.certificate_file", path, &[CERTIFICATE])?.into_bytes(),
            key: pem(
                "broker.tls.key_file",
                &tls.key_file,
                &[
                    "-----BEGIN PRIVATE KEY-----",
                    "-----BEGIN EC PRIVATE KEY-----",
                    "-----BEGIN RSA PRIVATE KEY-----",
                ],
            )?
            .into_bytes(),
        }),
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

fn pem(what: &'static str, path: &str, beginnings: &[&str]) -> Result<String, ConnectError> {
    let fail = |reason| ConnectError::TlsFile { path: path.to_owned(), what, reason };
    let bytes = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    // Comments between certificates may be of any encoding.
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if beginnings.iter().any(|beginning| text.contains(beginning)) {
        return Ok(text);
    }
    let wanted = beginnings.join(" or ");
    Err(fail(format!("it is no unencrypted PEM file: a line `{wanted}` is missing")))
}

/// What to do about a handshake that failed with these words, where that is known.
pub(super) fn hint(error: &str) -> Option<&'static str> {
    let hints = [
        (
            &["UnknownIssuer", "BadSignature"][..],
            "set broker.tls.ca_file to the PEM file of the authority that signed the broker's certificate",
        ),
        (
            &["NotValidForName", "not valid for name"],
            "the broker's certificate is for another host name: write that name in broker.addresses, or give the broker one for \
             this name",
        ),
        (
            &["Expired", "NotValidYet", "certificate expired", "not valid yet"],
            "the broker's certificate is not valid now: renew it, or check this machine's clock",
        ),
        (
            &["CertificateRequired", "HandshakeFailure", "BadCertificate", "UnknownCA", "CertificateUnknown"],
            "the broker wants a client certificate that it trusts: set broker.tls.certificate_file and broker.tls.key_file",
        ),
        // With TLS 1.3 the client is done before the broker has looked at its certificate: the alert can be lost in the reset.
        (
            &["reset by peer", "Broken pipe", "close_notify"],
            "the broker ended the connection; if it wants a client certificate, set broker.tls.certificate_file and \
             broker.tls.key_file to one that it trusts; its log says why",
        ),
        (&["corrupt message", "InvalidContentType"], "is this the broker's TLS port, 5671 by default?"),
        (
            &["native certificates"],
            "this machine has no certificate authorities: install ca-certificates, or set the variable SSL_CERT_FILE to the \
             file of broker.tls.ca_file",
        ),
    ];
    let found = hints.into_iter().find(|(words, _)| words.iter().any(|word| error.contains(word)));
    found.map(|(_, hint)| hint)
}
