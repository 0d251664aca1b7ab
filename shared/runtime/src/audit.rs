use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;

/// One line of the audit log. Names and outcomes only, never content.
#[derive(Debug, Serialize)]
pub(crate) struct Record<'a> {
    pub(crate) caller: &'a str,
    pub(crate) method: &'a str,
    pub(crate) right: Option<String>,
    pub(crate) collection: Option<String>,
    pub(crate) outcome: &'static str,
    pub(crate) peer: Option<String>,
    pub(crate) trace_id: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    time_unix_ms: u128,
    role: &'static str,
    #[serde(flatten)]
    record: &'a Record<'a>,
}

/// The audit log: one JSON object a line, appended.
#[derive(Debug)]
pub(crate) struct AuditLog {
    role: &'static str,
    file: Mutex<File>,
}

impl AuditLog {
    pub(crate) fn open(role: &'static str, path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { role, file: Mutex::new(file) })
    }

    /// Appends one line in one write. A failure is logged: the call is over and cannot be refused any more.
    pub(crate) fn write(&self, record: &Record<'_>) {
        let time_unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let written = serde_json::to_vec(&Line { time_unix_ms, role: self.role, record })
            .map_err(std::io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                self.file.lock().write_all(&line)
            });
        if let Err(error) = written {
            tracing::error!(%error, method = record.method, caller = record.caller, "audit line is lost");
        }
    }
}
