//! A language model as an observer, over the OpenAI-compatible chat interface of a server on the site's own network.
//!
//! What leaves this box: a fixed text, the structure's name from our own list, the number of slices, and a picture of pixels
//! and outline. No header, name, identifier, date or file name. Off unless configured.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use serde::Deserialize;

use super::{MAX_REMARK, Opinion, Shown, tame};
use crate::config;
use crate::image::Rgb;
use crate::segex::{Criterion, StructureReport};
use crate::terms;

/// Largest reply that is read, bytes.
const MAX_REPLY: u64 = 256 << 10;
/// Longest key, bytes.
const MAX_KEY: usize = 4096;

/// Why a language model did not answer; none of these touches the device's grades.
#[derive(Debug, thiserror::Error)]
pub enum ObserverError {
    /// Switched off.
    #[error("no language model is configured: set segex.observer.url and segex.observer.model")]
    Off,
    /// The address cannot be used.
    #[error("segex.observer.url {url}: {problem}")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong with it, and the remedy.
        problem: String,
    },
    /// The key cannot be read.
    #[error("segex.observer.key_file {}: {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No answer.
    #[error("the language model at {address} cannot be asked: {problem}")]
    Unreachable {
        /// Where it should be.
        address: SocketAddr,
        /// What happened.
        problem: String,
    },
    /// An answer that is none.
    #[error("the language model's answer cannot be used: {0}")]
    Reply(String),
}

/// A server with a chat interface and the model to ask there.
#[derive(Clone)]
pub struct LanguageModel {
    address: SocketAddr,
    host: String,
    path: String,
    model: String,
    key: Option<String>,
    timeout: Duration,
}

impl std::fmt::Debug for LanguageModel {
    // The key stays out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LanguageModel({} at {})", self.model, self.address)
    }
}

impl LanguageModel {
    /// The configured server. Its name is looked up once, here; only an address of a private network is taken, unless the
    /// configuration allows others.
    ///
    /// # Errors
    /// [`ObserverError::Off`], [`ObserverError::Url`], [`ObserverError::Key`].
    pub fn new(settings: &config::Observer) -> Result<Self, ObserverError> {
        if settings.url.is_empty() || settings.model.is_empty() {
            return Err(ObserverError::Off);
        }
        let wrong = |problem: String| ObserverError::Url { url: settings.url.clone(), problem };
        let rest = settings.url.strip_prefix("http://").ok_or_else(|| {
            wrong("only http:// is spoken, on the site's own network; for TLS put a proxy on this box before it".into())
        })?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() || host.contains('@') || !rest.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong("expected http://HOST:PORT/v1".into()));
        }
        let named = if host.rsplit(']').next().is_some_and(|end| end.contains(':')) || host.ends_with(']') {
            if host.ends_with(']') { format!("{host}:80") } else { host.to_string() }
        } else {
            format!("{host}:80")
        };
        let all: Vec<SocketAddr> =
            named.to_socket_addrs().map_err(|e| wrong(format!("cannot be looked up ({e})")))?.collect();
        let fit = |a: &&SocketAddr| settings.allow_public || is_private(a.ip());
        let Some(address) = all.iter().find(fit) else {
            return Err(wrong(
                "is not on a private network; images of patients would leave the site. \
                 Use a server on the site's own network, or set segex.observer.allow_public"
                    .into(),
            ));
        };
        Ok(LanguageModel {
            address: *address,
            host: host.to_string(),
            path: format!("/{}/chat/completions", path.trim_matches('/')).replace("//", "/"),
            model: settings.model.clone(),
            key: key(settings)?,
            timeout: Duration::from_secs(settings.timeout_seconds),
        })
    }

    /// Who observed, as it stands in reports.
    pub fn observer(&self) -> String {
        format!("language model {}", self.model)
    }

    /// Grades one structure by its picture.
    ///
    /// # Errors
    /// [`ObserverError::Unreachable`], [`ObserverError::Reply`].
    pub fn grade(&self, shown: &Shown, picture: &Rgb) -> Result<StructureReport, ObserverError> {
        let png = picture.png().map_err(|e| ObserverError::Reply(format!("the picture could not be made ({e})")))?;
        let reply = self.ask(&self.request(shown, &png))?;
        let opinion = parse(&reply, shown.slices).map_err(ObserverError::Reply)?;
        Ok(opinion.report(shown, "graded by a language model on a picture"))
    }

    fn request(&self, shown: &Shown, png: &[u8]) -> serde_json::Value {
        // A name of our own list, never a segment's label from a file.
        let name = terms::structure(&shown.structure.key).map_or("a structure".to_string(), |s| s.name);
        let text = format!(
            "The outline is meant to be: {name}, in axial MR slices of a thigh. The volume has {} slices; each tile says \
             which one it shows. Reply with the JSON object only.",
            shown.slices
        );
        let image = format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png));
        serde_json::json!({
            "model": self.model,
            "temperature": 0,
            "max_tokens": 1200,
            "messages": [
                { "role": "system", "content": rubric() },
                { "role": "user", "content": [
                    { "type": "text", "text": text },
                    { "type": "image_url", "image_url": { "url": image } },
                ] },
            ],
        })
    }

    fn ask(&self, request: &serde_json::Value) -> Result<String, ObserverError> {
        let failed = |problem: String| ObserverError::Unreachable { address: self.address, problem };
        // No proxy of the environment and no redirect: pictures go to the address that was checked, and nowhere else.
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(self.timeout))
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent("segex")
            .build()
            .into();
        let mut post = agent
            .post(format!("http://{}{}", self.address, self.path))
            .header("host", &self.host)
            .header("content-type", "application/json");
        if let Some(key) = &self.key {
            post = post.header("authorization", format!("Bearer {key}"));
        }
        let mut answer = post.send(request.to_string().as_bytes()).map_err(|e| failed(e.to_string()))?;
        if answer.status().as_u16() != 200 {
            return Err(failed(format!("it answered with status {}", answer.status().as_u16())));
        }
        let body = answer
            .body_mut()
            .with_config()
            .limit(MAX_REPLY)
            .read_to_vec()
            .map_err(|e| ObserverError::Reply(format!("it could not be read to its end ({e})")))?;
        let chat: Chat = serde_json::from_slice(&body)
            .map_err(|e| ObserverError::Reply(format!("it is no chat completion ({e})")))?;
        let content = chat.choices.into_iter().next().and_then(|c| c.message.content);
        content.ok_or_else(|| ObserverError::Reply("it holds no message".into()))
    }
}

fn key(settings: &config::Observer) -> Result<Option<String>, ObserverError> {
    let path = &settings.key_file;
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let wrong = |problem: String| ObserverError::Key { path: path.clone(), problem };
    let bytes = super::read_bounded(path).map_err(|e| wrong(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("is no text".into()))?;
    let text = text.trim();
    if text.is_empty() || text.len() > MAX_KEY || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(wrong("expected one key on one line".into()));
    }
    Ok(Some(text.to_string()))
}

/// Loopback, private, link-local and unique local addresses.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_private(IpAddr::V4(v4)),
            None => v6.is_loopback() || v6.segments()[0] & 0xfe00 == 0xfc00 || v6.segments()[0] & 0xffc0 == 0xfe80,
        },
    }
}

/// What the model is told: the eight criteria and the form of the answer.
fn rubric() -> String {
    let mut out = String::from(
        "You judge the outline of one structure in medical images. Grade each criterion from 1 (worst) to 5 (best), or null \
         where the picture does not show it:\n",
    );
    for (c, words) in Criterion::ALL.iter().zip([
        "the outline lies on the structure's edge",
        "nothing of the structure is left out",
        "nothing else is included",
        "size, place and shape are plausible",
        "one piece without holes",
        "neighbouring slices fit together, none is missing",
        "how sure you are that the outline is right",
        "how little a reader would have to redraw: 5 almost nothing, 1 most of it",
    ]) {
        out.push_str(&format!("{}: {words}\n", c.id()));
    }
    out.push_str(
        "Reply with one JSON object and nothing else: {\"grades\": {\"C1\": 4, ..., \"C8\": 3}, \"slices\": {\"C1\": [7]}, \
         \"remark\": \"one sentence\"}. `slices` names, for a criterion graded 3 or less, the slices at fault.",
    );
    out
}

#[derive(Deserialize)]
struct Chat {
    choices: Vec<Choice>,
}
#[derive(Deserialize)]
struct Choice {
    message: Message,
}
#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

/// An answer as it must be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    grades: std::collections::BTreeMap<String, Option<u8>>,
    #[serde(default)]
    slices: std::collections::BTreeMap<String, Vec<usize>>,
    #[serde(default)]
    remark: String,
}

/// Reads an answer: one JSON object, which may stand in a code fence. Grades outside 1 to 5, criteria that are none and slices
/// that are none are refused; criteria left out are not graded, but one at least must be.
fn parse(text: &str, slices: usize) -> Result<Opinion, String> {
    let text = text.trim();
    let inner = text.strip_prefix("```json").or_else(|| text.strip_prefix("```")).and_then(|t| t.strip_suffix("```"));
    let answer: Answer = serde_json::from_str(inner.unwrap_or(text).trim())
        .map_err(|e| format!("it is not the JSON asked for ({e})"))?;
    let place = |id: &str| {
        Criterion::ALL.iter().position(|c| c.id() == id).ok_or_else(|| "it names a criterion that is none".to_string())
    };
    let mut out = Opinion { remark: tame(&answer.remark, MAX_REMARK), ..Opinion::default() };
    for (id, grade) in answer.grades {
        if grade.is_some_and(|g| !(1..=5).contains(&g)) {
            return Err(format!("it grades {} outside 1 to 5", tame(&id, 8)));
        }
        out.grades[place(&id)?] = grade;
    }
    for (id, named) in answer.slices {
        if named.iter().any(|z| !(1..=slices).contains(z)) {
            return Err(format!("it names a slice outside 1 to {slices}"));
        }
        let mut named: Vec<usize> = named.into_iter().map(|z| z - 1).collect();
        named.sort_unstable();
        named.dedup();
        out.slices[place(&id)?] = named;
    }
    if out.grades.iter().all(Option::is_none) {
        return Err("it grades nothing".into());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_only_as_asked_for() {
        let good = parse(
            r#" {"grades": {"C1": 4, "C8": 2, "C7": null}, "slices": {"C8": [3, 3, 1]}, "remark": "leaks\nlaterally"}"#,
            15,
        )
        .unwrap();
        assert_eq!((good.grades[0], good.grades[6], good.grades[7]), (Some(4), None, Some(2)));
        assert_eq!((good.slices[7].as_slice(), good.remark.as_str()), ([0, 2].as_slice(), "leaks laterally"));
        assert!(parse("```json\n{\"grades\": {\"C1\": 5}}\n```", 15).is_ok());
        for (bad, why) in [
            ("I think it looks fine.", "not the JSON"),
            (r#"Sure! {"grades": {"C1": 4}}"#, "not the JSON"),
            (r#"{"grades": {"C1": 9}}"#, "outside 1 to 5"),
            (r#"{"grades": {"C1": 4.5}}"#, "not the JSON"),
            (r#"{"grades": {"C9": 4}}"#, "a criterion that is none"),
            (r#"{"grades": {"C1": null}}"#, "grades nothing"),
            (r#"{"grades": {"C1": 4}, "slices": {"C1": [16]}}"#, "slice outside"),
            (r#"{"grades": {"C1": 4}, "slices": {"C1": [0]}}"#, "slice outside"),
            (r#"{"grades": {"C1": 4}, "extra": 1}"#, "not the JSON"),
        ] {
            let e = parse(bad, 15).unwrap_err();
            assert!(e.contains(why), "{bad}: {e}");
        }
    }

    #[test]
    fn only_private_addresses_are_taken() {
        let at = |url: &str| {
            LanguageModel::new(&config::Observer { url: url.into(), model: "m".into(), ..config::Observer::default() })
        };
        for url in [
            "http://127.0.0.1:8000/v1",
            "http://10.1.2.3",
            "http://192.168.7.1:1/",
            "http://[::1]:8000/v1",
            "http://[fd00::1]",
        ] {
            assert!(at(url).is_ok(), "{url}: {:?}", at(url).err());
        }
        for url in ["http://8.8.8.8/v1", "http://100.64.0.1", "http://[2001:db8::1]/v1", "http://[::ffff:8.8.8.8]/v1"] {
            assert!(at(url).unwrap_err().to_string().contains("private"), "{url}");
        }
        assert!(at("https://10.0.0.1/v1").unwrap_err().to_string().contains("http://"));
        assert!(at("http://user:pw@10.0.0.1/v1").is_err());
        assert!(matches!(at(""), Err(ObserverError::Off)));
        let path = |url: &str| at(url).unwrap().path;
        assert_eq!(path("http://10.0.0.1/v1/"), "/v1/chat/completions");
        assert_eq!(path("http://10.0.0.1"), "/chat/completions");
        let open = config::Observer {
            url: "http://8.8.8.8/v1".into(),
            model: "m".into(),
            allow_public: true,
            ..config::Observer::default()
        };
        assert!(LanguageModel::new(&open).is_ok());
    }

    #[test]
    fn a_key_is_one_line_and_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let settings = config::Observer {
            url: "http://127.0.0.1:9/v1".into(),
            model: "m".into(),
            key_file: file.path().into(),
            ..config::Observer::default()
        };
        assert!(matches!(LanguageModel::new(&settings), Err(ObserverError::Key { .. })));
        std::fs::write(file.path(), "sk-secret\n").unwrap();
        let m = LanguageModel::new(&settings).unwrap();
        assert_eq!(m.key.as_deref(), Some("sk-secret"));
        assert!(!format!("{m:?}").contains("secret"));
        std::fs::write(file.path(), "a\nb\n").unwrap();
        assert!(matches!(LanguageModel::new(&settings), Err(ObserverError::Key { .. })));
    }
}
