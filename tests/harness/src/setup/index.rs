//! The Python package index without pip: PEP 503 (HTML) and PEP 691 (JSON) pages of the simple API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::say;

/// The largest wheel pinned here is 24 MB.
const LIMIT_BYTES: u64 = 256 << 20;

pub(super) fn base_url() -> String {
    std::env::var("PIP_INDEX_URL")
        .ok()
        .filter(|url| !url.is_empty())
        .unwrap_or_else(|| "https://pypi.org/simple".into())
}

/// Downloads `file` of `project`; the caller checks its hash.
pub(super) fn fetch(base_url: &str, project: &str, file: &str) -> Result<Vec<u8>> {
    say(&format!("download {file}"));
    let agent: Agent = Agent::config_builder()
        .tls_config(TlsConfig::builder().root_certs(root_certificates()).build())
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_global(Some(Duration::from_secs(600)))
        .build()
        .into();
    let page_url = format!("{}/{project}/", base_url.trim_end_matches('/'));
    let accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5";
    let page = agent
        .get(&page_url)
        .header("Accept", accept)
        .call()
        .with_context(|| format!("{project} is not to be had from the index"))?
        .body_mut()
        .with_config()
        .limit(LIMIT_BYTES)
        .read_to_string()?;
    let link = link_to(&page, file).with_context(|| format!("the index does not list {file}"))?;
    let mut answer = agent
        .get(join(&page_url, &link))
        .call()
        .with_context(|| format!("{file} is not to be had from the index"))?;
    let bytes = answer.body_mut().with_config().limit(LIMIT_BYTES).read_to_vec()?;
    Ok(bytes)
}

/// The platform's certificates where it has a file of them: a company's proxy signs with its own.
fn root_certificates() -> RootCerts {
    let files = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let pem = files
        .into_iter()
        .chain(["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"].map(PathBuf::from))
        .find_map(|path| std::fs::read(path).ok());
    let Some(pem) = pem else {
        return RootCerts::WebPki;
    };
    let certificates = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    RootCerts::Specific(Arc::new(certificates))
}

/// The address of `file` in either kind of page; without the `#sha256=` that HTML links carry.
fn link_to(page: &str, file: &str) -> Option<String> {
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(page) {
        let entry = json["files"].as_array()?.iter().find(|entry| entry["filename"] == file)?;
        return Some(entry["url"].as_str()?.to_owned());
    }
    page.split("href=")
        .skip(1)
        .filter_map(|rest| {
            let quote = rest.chars().next()?;
            let link = rest[quote.len_utf8()..].split(quote).next()?;
            link.split('#').next()
        })
        .find(|link| link.ends_with(file))
        .map(str::to_owned)
}

/// Resolves the three forms of links that indexes use: absolute, from the host's root, relative to the page.
fn join(page_url: &str, link: &str) -> String {
    if link.contains("://") {
        return link.to_owned();
    }
    let host_start = page_url.find("://").map_or(0, |at| at + 3);
    let path_start = page_url[host_start..].find('/').map_or(page_url.len(), |at| host_start + at);
    let (host, path) = page_url.split_at(path_start);
    if link.starts_with('/') {
        return format!("{host}{link}");
    }
    let mut segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    for segment in link.split('/') {
        match segment {
            ".." => drop(segments.pop()),
            "." => {}
            name => segments.push(name),
        }
    }
    format!("{host}/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn links_resolve_as_in_a_browser() {
        let page = "http://user:word@host:80/simple/thing/";
        for (link, expected) in [
            ("https://files/a.whl", "https://files/a.whl"),
            ("/packages/a.whl", "http://user:word@host:80/packages/a.whl"),
            ("../../packages/a.whl", "http://user:word@host:80/packages/a.whl"),
            ("a.whl", "http://user:word@host:80/simple/thing/a.whl"),
        ] {
            assert_eq!(join(page, link), expected, "{link}");
        }
    }

    #[test]
    fn a_file_is_fetched_from_html_and_from_json_pages() {
        let pages = [
            "<a href=\"../../files/other.whl\">o</a><a href=\"../../files/thing.whl#sha256=1\">t</a>",
            r#"{"files": [{"filename": "thing.whl", "url": "/files/thing.whl"}]}"#,
        ];
        for page in pages {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let base = format!("http://{}/simple", listener.local_addr().unwrap());
            let index = std::thread::spawn(move || {
                serve(&listener, "/simple/thing/", page.as_bytes());
                serve(&listener, "/files/thing.whl", b"wheel");
            });
            assert_eq!(fetch(&base, "thing", "thing.whl").unwrap(), b"wheel");
            index.join().unwrap();
        }
    }

    fn serve(listener: &TcpListener, expected_path: &str, body: &[u8]) {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            reader.read_line(&mut request).unwrap();
        }
        assert_eq!(request.split(' ').nth(1), Some(expected_path));
        let mut stream = reader.into_inner();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
    }
}
