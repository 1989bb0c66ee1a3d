//! `amqps`: worker, library and command over TLS, with and without client certificates, and what they say when it fails.

use std::path::{Path, PathBuf};

use millrace_harness::broker::{Broker, BrokerOptions, BrokerTls};
use millrace_harness::models;
use millrace_producer::{Client, Request};
use millrace_tests::stack::{ONE_INSTANCE, READY, Stack, milestone};
use ndarray::Array2;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::secrets::{EVERYTHING, assert_process_silent, assert_silent_of};

/// The one name in the broker's certificate. Its address 127.0.0.1 is another.
const HOST: &str = "localhost";

/// An authority, and a folder for what it signs.
struct Authority {
    folder: TempDir,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), &pem).unwrap();
        Self { folder, pem, issuer: Issuer::new(parameters, key) }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A certificate and its key.
    fn sign(&self, name: &str) -> (String, String) {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (parameters.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn broker(&self, asks_for_certificates: bool) -> Broker {
        let (certificate, key) = self.sign(HOST);
        let tls = BrokerTls { authority: self.pem.clone(), certificate, key, asks_for_certificates };
        Broker::start(BrokerOptions { plugins: Vec::new(), tls: Some(tls), ..BrokerOptions::default() })
            .unwrap()
    }
}

/// A stack whose broker is known by this host name.
fn stack(broker: &Broker, host: &str, settings: &[(&str, &str)]) -> Stack {
    let stack = Stack::on(&broker.amqps_url(host)).config("m", ONE_INSTANCE).model("m", &models::scale(2.0));
    settings.iter().fold(stack, |stack, (key, value)| stack.set(&format!("BROKER__TLS__{key}"), value))
}

/// Worker, library and command do their work.
async fn expect_service(stack: &Stack) {
    let mut worker = stack.worker();
    let client = stack.client().await;
    let row = Array2::from_elem((1, 4), 1.0f32);
    let response = client.infer(Request::new("m").input_array("x", row.view()).unwrap()).await.unwrap();
    assert_eq!(response.array::<f32>("y").unwrap()[[0, 3]], 2.0);
    client.close().await;
    let (code, out, err) = stack.millrace(&["models"], &[]);
    assert!(code == 0 && out.contains('m'), "{code}: {out}{err}");
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0));
}

/// Each of them says why not, and which key to set.
async fn expect_refusal(stack: &Stack, key: &str) {
    let error = Client::connect(stack.client_config()).await.unwrap_err().to_string();
    assert!(error.contains(key), "the library's error lacks {key}: {error}");
    let (code, out, err) = stack.millrace(&["models"], &[]);
    assert!(code == 3 && err.contains(key), "the command lacks {key} ({code}): {out}{err}");
    let mut worker = stack.starting_worker(&[]);
    milestone(&mut worker, key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_believed_by_its_authority_and_name() {
    let (authority, other) = (Authority::new("ours"), Authority::new("another"));
    let broker = authority.broker(false);
    let (ours, another) = (authority.file("ca.pem"), other.file("ca.pem"));
    expect_service(&stack(&broker, HOST, &[("CA_FILE", &ours)])).await;
    expect_refusal(&stack(&broker, HOST, &[]), "broker.tls.ca_file").await;
    expect_refusal(&stack(&broker, HOST, &[("CA_FILE", &another)]), "broker.tls.ca_file").await;
    expect_refusal(
        &stack(&broker, "127.0.0.1", &[("CA_FILE", &ours)]),
        "write that name in broker.addresses",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_wants_certificates_gets_them_and_nobody_prints_a_key() {
    let (authority, other) = (Authority::new("ours"), Authority::new("another"));
    let broker = authority.broker(true);
    let ca = authority.file("ca.pem");
    let [own, foreign] = [&authority, &other].map(|signer| {
        let (certificate, key) = signer.sign("worker");
        let written = |name: &str, text: &str| write(signer.folder.path(), name, text);
        (written("client.pem", &certificate), written("client.key", &key), key)
    });
    let settings = |identity: &(PathBuf, PathBuf, String)| {
        let (certificate, key, _) = identity;
        stack(
            &broker,
            HOST,
            &[
                ("CA_FILE", &ca),
                ("CERTIFICATE_FILE", &certificate.display().to_string()),
                ("KEY_FILE", &key.display().to_string()),
            ],
        )
    };
    expect_refusal(&stack(&broker, HOST, &[("CA_FILE", &ca)]), "broker.tls.certificate_file").await;
    expect_refusal(&settings(&foreign), "broker.tls.certificate_file").await;
    let stack = settings(&own);
    expect_service(&stack).await;

    // At the finest level, with all that the libraries say.
    let mut worker = stack.worker_with(&[EVERYTHING]);
    let (_, out, err) = stack.millrace(&["models"], &[EVERYTHING]);
    worker.terminate();
    assert_eq!(worker.wait(READY).unwrap().code(), Some(0));
    assert_process_silent(&worker);
    let printed = format!("{out}{err}{}{} {:?}", worker.stderr(), worker.stdout(), stack.client_config());
    let secret: String = own.2.lines().filter(|line| !line.starts_with("-----")).collect();
    // The end of what is encoded; its beginning says only what kind of key it is.
    assert_silent_of("a process", &printed, &secret[secret.len() - 24..]);
}

#[tokio::test]
async fn files_that_hold_something_else_are_named() {
    let authority = Authority::new("ours");
    let (certificate, key) = authority.sign("worker");
    let (certificate, key) = (
        write(authority.folder.path(), "c.pem", &certificate),
        write(authority.folder.path(), "k.pem", &key),
    );
    let [certificate, key] = [certificate, key].map(|path| path.display().to_string());
    let absent = authority.file("absent.pem");
    for (named, settings) in [
        ("broker.tls.ca_file", vec![("CA_FILE", &absent)]),
        ("broker.tls.ca_file", vec![("CA_FILE", &key)]),
        ("broker.tls.certificate_file", vec![("CERTIFICATE_FILE", &key), ("KEY_FILE", &key)]),
        ("broker.tls.key_file", vec![("CERTIFICATE_FILE", &certificate), ("KEY_FILE", &certificate)]),
    ] {
        let stack = Stack::on("amqps://guest:guest@localhost:1/%2f");
        let stack = settings
            .iter()
            .fold(stack, |stack, (key, value)| stack.set(&format!("BROKER__TLS__{key}"), value));
        let error = Client::connect(stack.client_config()).await.unwrap_err().to_string();
        assert!(
            error.contains(named) && error.contains(settings[settings.len() - 1].1.as_str()),
            "{named}: {error}"
        );
    }
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}
