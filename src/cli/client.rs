//! The client that the settings and options make.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use genesys_attributes::audit::AuditFile;
use genesys_attributes::audit::AuditMode;
use genesys_attributes::validate::Schema;
use genesys_attributes::{Client, ClientBuilder, EndedPolicy, Error, RateLimit, Settings};

use serde_json::Value;

use super::files::Files;
use super::options::{ClientOptions, Options};
use super::{Failure, screen};

/// What the client is made from: read, and nothing of it opened yet.
pub(crate) struct Config<'a> {
    options: &'a ClientOptions,
    source: Source<'a>,
    /// What a settings file says that the program needs to know.
    audit: Option<PathBuf>,
    root_certificates: Option<PathBuf>,
    rate: Option<u32>,
    has_idle_connections: bool,
}

/// The variables that settings may be given by.
const VARIABLES: &[&str] = &[
    "GENESYS_CLOUD_REGION",
    "GENESYS_CLOUD_CLIENT_ID",
    "GENESYS_CLOUD_CLIENT_SECRET",
    "GENESYS_CLOUD_BASE_URL",
    "GENESYSCLOUD_REGION",
    "GENESYSCLOUD_OAUTHCLIENT_ID",
    "GENESYSCLOUD_OAUTHCLIENT_SECRET",
    "GENESYSCLOUD_ACCESS_TOKEN",
];

enum Source<'a> {
    Environment,
    /// Not read before its file is known to have no other purpose.
    Credentials(&'a Path),
    Settings(Box<Settings>),
}

impl<'a> Config<'a> {
    pub(crate) fn read(options: &'a Options) -> Result<Config<'a>, Failure> {
        let options = &options.client;
        let mut config = Config {
            options,
            source: Source::Environment,
            audit: None,
            root_certificates: None,
            rate: None,
            has_idle_connections: false,
        };
        if let Some(path) = &options.source.credentials {
            config.source = Source::Credentials(path);
        } else if let Some(path) = &options.source.settings {
            let text = text_of(path, "the settings file")?;
            warn_of_readers(path, "settings");
            let settings =
                Settings::from_json(&text).map_err(|error| of_file(error, &shown(path)))?;
            config.source = Source::Settings(Box::new(settings));
            // It is JSON: the settings were read from it.
            let fields: Value = serde_json::from_str(&text).unwrap_or_default();
            let file = |at: &str| {
                fields
                    .pointer(at)
                    .and_then(Value::as_str)
                    .map(PathBuf::from)
            };
            config.audit = file("/audit/file");
            config.root_certificates = file("/rootCertificatesFile");
            let rate = fields.get("ratePerMinute").and_then(Value::as_u64);
            config.rate = rate.and_then(|rate| u32::try_from(rate).ok());
            config.has_idle_connections = !fields["maxIdleConnections"].is_null();
        }
        Ok(config)
    }

    /// The files that a client reads and writes, for whoever has others.
    pub(crate) fn files(&self) -> Result<Files, Failure> {
        let options = self.options;
        let settings = options
            .source
            .credentials
            .as_deref()
            .or(options.source.settings.as_deref());
        Files::default()
            .read("the settings file", settings)
            .and_then(|files| files.read("--schema-file", options.checks.schema_file.as_deref()))
            .and_then(|files| files.read("rootCertificatesFile", self.root_certificates.as_deref()))
            .and_then(|files| files.written("--audit", options.guards.audit.as_deref()))
            .and_then(|files| files.written("the audit file", self.audit.as_deref()))
            .map_err(Failure::usage)
    }

    /// Requests a minute, where they are limited.
    pub(crate) fn rate(&self) -> Option<u32> {
        let asked = self.options.source.rate.or(self.rate);
        Some(asked.unwrap_or(300)).filter(|rate| *rate > 0)
    }

    /// A client that writes.
    pub(crate) fn client(self, workers: usize) -> Result<Client, Failure> {
        let audit = self.options.guards.audit.as_deref();
        let (audit_values, audit_strict) = (
            self.options.guards.audit_values,
            self.options.guards.audit_strict,
        );
        let mut builder = self.builder(workers)?;
        if let Some(path) = audit {
            let file = AuditFile::open(path).map_err(|e| {
                Failure::usage(format!(
                    "the audit file {} cannot be opened: {e}",
                    path.display()
                ))
            })?;
            builder = builder.audit(file);
            // Each is only asked for: a settings file may ask for it as well.
            if audit_values {
                builder = builder.audit_values(true);
            }
            if audit_strict {
                builder = builder.audit_mode(AuditMode::Strict);
            }
        }
        Ok(builder.build()?)
    }

    /// A client that only reads: it needs no audit file, and makes none.
    pub(crate) fn reader(self) -> Result<Client, Failure> {
        Ok(self.builder(1)?.build()?)
    }

    fn builder(self, workers: usize) -> Result<ClientBuilder, Failure> {
        let options = self.options;
        let mut builder = match self.source {
            Source::Environment => ClientBuilder::from_env()?,
            Source::Credentials(path) => from_credentials(path)?,
            Source::Settings(settings) => {
                let path = options.source.settings.as_deref().unwrap_or(Path::new("-"));
                settings
                    .builder()
                    .map_err(|error| of_file(error, &shown(path)))?
            }
        };
        if let Some(per_minute) = options.source.rate {
            builder = builder.rate_limit(match per_minute {
                0 => RateLimit::unlimited(),
                n => RateLimit::per_minute(n),
            });
        }
        if options.guards.refuse_ended {
            builder = builder.ended_conversations(EndedPolicy::Refuse);
        }
        if let Some(schema) = schema(options)? {
            builder = builder.schema(schema);
        }
        if !self.has_idle_connections {
            builder = builder.max_idle_connections(workers.max(4));
        }
        Ok(builder)
    }
}

/// A client that writes, where no other files have to be told apart.
pub(crate) fn client(options: &Options, workers: usize) -> Result<Client, Failure> {
    Config::read(options)?.client(workers)
}

/// The caller's own schema, where the options name its file.
pub(crate) fn schema(options: &ClientOptions) -> Result<Option<Schema>, Failure> {
    let Some(path) = &options.checks.schema_file else {
        return Ok(None);
    };
    let text = fs::read_to_string(path).map_err(|e| {
        Failure::usage(format!(
            "the schema file {} cannot be read: {e}",
            path.display()
        ))
    })?;
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
    let schema = Schema::from_json(text).map_err(|error| {
        Failure::usage(format!(
            "{error} (the schema is that of {})",
            path.display()
        ))
    })?;
    Ok(Some(schema))
}

/// Names the file that the settings come from.
fn of_file(error: Error, shown: &str) -> Failure {
    let mut failure = Failure::from(error);
    failure.message += &format!(" (the settings are from {shown})");
    failure
}

fn text_of(path: &Path, what: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => io::stdin().lock().read_to_end(&mut bytes),
        false => File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    let shown = shown(path);
    read.map_err(|e| Failure::usage(format!("{what} {shown} cannot be read: {e}")))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::usage(format!("{what} {shown} is not UTF-8")))?;
    Ok(match text.strip_prefix('\u{FEFF}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

fn shown(path: &Path) -> String {
    match path.as_os_str() == "-" {
        true => "standard input".into(),
        false => path.display().to_string(),
    }
}

fn from_credentials(path: &Path) -> Result<ClientBuilder, Failure> {
    let shown = shown(path);
    let text = text_of(path, "the credentials file")?;
    warn_of_readers(path, "credentials");
    let (settings, warnings) = settings(&text, &shown).map_err(Failure::usage)?;
    for warning in warnings {
        screen::warn(&warning);
    }
    ClientBuilder::from_variables(|name| Ok(settings.get(name).cloned()))
        .map_err(|error| of_file(error, &shown))
}

#[cfg(unix)]
fn warn_of_readers(path: &Path, what: &str) {
    use std::os::unix::fs::PermissionsExt;
    let readable = std::fs::metadata(path)
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o044 != 0);
    if readable {
        let shown = path.display();
        screen::warn(&format!(
            "other users can read the {what} file {shown}: chmod 600 {shown}"
        ));
    }
}

#[cfg(not(unix))]
fn warn_of_readers(_: &Path, _: &str) {}

/// `NAME=VALUE` lines, as a shell would read them: `export`, quotes and comments are understood.
/// A line may hold a secret, so no more of it is told than its number and a name that looks like
/// one of a variable.
pub(super) fn settings(
    text: &str,
    shown: &str,
) -> Result<(HashMap<String, String>, Vec<String>), String> {
    let (mut settings, mut warnings) = (HashMap::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let at = format!("line {} of {shown}", index + 1);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| format!("{at} is not NAME=VALUE"))?;
        let name = name.trim();
        if !VARIABLES.contains(&name) {
            let is_shown = name.contains('_')
                && name.len() <= 64
                && name
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
            let what = if is_shown {
                format!("the name {name}")
            } else {
                "a name".to_owned()
            };
            let distance = |known: &&&str| strsim::osa_distance(name, known);
            let near = VARIABLES.iter().min_by_key(distance);
            if let Some(meant) = near.filter(|known| distance(known) <= known.len() / 3) {
                return Err(format!(
                    "{at} has {what}, which is not known: is it {meant}?"
                ));
            }
            warnings.push(format!(
                "{at} has {what}, which is not known: it is ignored"
            ));
            continue;
        }
        let value = value_of(value.trim()).map_err(|problem| format!("{at} {problem}"))?;
        settings.insert(name.to_owned(), value);
    }
    Ok((settings, warnings))
}

/// A value without its quotes and the comment behind it.
fn value_of(text: &str) -> Result<String, &'static str> {
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            let (value, rest) = rest
                .split_once(quote)
                .ok_or("has a quote without its end")?;
            let rest = rest.trim();
            return match rest.is_empty() || rest.starts_with('#') {
                true => Ok(value.to_owned()),
                false => Err("goes on after its quoted value"),
            };
        }
    }
    let value = text
        .split_once(" #")
        .map_or(text, |(value, _)| value)
        .trim();
    let value = if value.starts_with('#') { "" } else { value };
    match value.contains(char::is_whitespace) {
        true => Err("has a value with spaces: put it in quotes"),
        false => Ok(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_as_a_shell_would() {
        let text = "# all\r\nexport GENESYS_CLOUD_REGION=\"eu-west-1\" # where\n\n\
                    GENESYS_CLOUD_CLIENT_ID = 'id # 1'\nGENESYS_CLOUD_CLIENT_SECRET=a=b# # end\n\
                    OTHER_NAME=1\nc2VjcmV0=\n";
        let (found, warnings) = settings(text, "F").unwrap();
        assert_eq!(found["GENESYS_CLOUD_REGION"], "eu-west-1");
        assert_eq!(found["GENESYS_CLOUD_CLIENT_ID"], "id # 1");
        assert_eq!(found["GENESYS_CLOUD_CLIENT_SECRET"], "a=b#");
        assert_eq!(
            warnings,
            [
                "line 6 of F has the name OTHER_NAME, which is not known: it is ignored",
                "line 7 of F has a name, which is not known: it is ignored"
            ]
        );
    }

    #[test]
    fn credentials_that_are_wrong_are_told_by_line_without_their_text() {
        for (text, problem) in [
            ("\nhunter2\n", "line 2 of F is not NAME=VALUE"),
            (
                "GENESYS_CLOUD_CLIENTID=hunter2\n",
                "is it GENESYS_CLOUD_CLIENT_ID?",
            ),
            ("GENESYS_CLOUD_REGION=\"hunter2\n", "quote without its end"),
            ("GENESYS_CLOUD_REGION='a' hunter2\n", "goes on after"),
            ("GENESYS_CLOUD_REGION=a hunter2\n", "in quotes"),
        ] {
            let error = settings(text, "F").unwrap_err();
            assert!(
                error.contains(problem) && error.contains(" of F"),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
