use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use tonic::transport::Endpoint;

use crate::keys::Prefix;
use crate::session::causes;
use crate::{Address, shown};

/// Shortest lease. etcd itself grants no less than 1.5 of its election timeouts, 2 s by default.
pub const MIN_LEASE_TTL: Duration = Duration::from_secs(1);
/// Longest lease.
pub const MAX_LEASE_TTL: Duration = Duration::from_secs(600);
/// Largest file of a certificate, a key or a password.
const MAX_FILE: u64 = 1 << 20;

/// Where etcd is and how it is used.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// Its client addresses, at least one. Each attempt takes the next.
    pub endpoints: Vec<Address>,
    /// What this cluster's keys begin with.
    pub prefix: Prefix,
    /// Certificates, which `https` endpoints must have and others must not.
    pub tls: Option<TlsFiles>,
    /// User and password, where etcd asks for them.
    pub login: Option<Login>,
    /// How long a registration outlives its process, whole seconds from [`MIN_LEASE_TTL`] to [`MAX_LEASE_TTL`]. It is
    /// renewed three times in that time.
    pub lease_ttl: Duration,
    /// How long things may take.
    pub timing: Timing,
}

/// PEM files, read at every connection, so that they may be renewed in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authority that signed etcd's certificates.
    pub ca: PathBuf,
    /// Certificate and key that etcd knows this process by.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Who this process is for etcd's access control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// User.
    pub user: String,
    /// File with the password, read at every connection; white space around it does not count.
    pub password_file: PathBuf,
}

/// How long things may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Longest wait for an answer of etcd; for the lease no more than a third of its time. Default: 2 s.
    pub request: Duration,
    /// After such a silence a watch is asked for a sign of life, and renewed if none comes. Default: 5 s.
    pub silence: Duration,
    /// First wait after a failure; it doubles. Default: 100 ms.
    pub first_wait: Duration,
    /// Longest wait after a failure. Default: 5 s.
    pub longest_wait: Duration,
    /// Longest wait of [`crate::Registration::withdraw`] and [`crate::Registration::close`]. Default: 3 s.
    pub goodbye: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(2),
            silence: Duration::from_secs(5),
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(5),
            goodbye: Duration::from_secs(3),
        }
    }
}

/// Why settings do not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No address of etcd.
    #[error("etcd has no address: name at least one")]
    NoEndpoint,
    /// Certificates are given for an endpoint that is called without TLS.
    #[error("etcd certificates are given, but endpoint {endpoint} is not https")]
    PlainEndpoint {
        /// The endpoint.
        endpoint: String,
    },
    /// An endpoint is called over TLS and no authority is given: no certificate would be trusted.
    #[error("etcd endpoint {endpoint} is https, but no CA file is given")]
    NoAuthority {
        /// The endpoint.
        endpoint: String,
    },
    /// Certificate and key do not do together.
    #[error("etcd certificates cannot be used: {reason}")]
    Tls {
        /// Why not.
        reason: String,
    },
    /// The lease's time is out of range.
    #[error("lease ttl is {actual:?}, allowed are whole seconds from {MIN_LEASE_TTL:?} to {MAX_LEASE_TTL:?}")]
    LeaseTtl {
        /// What was given.
        actual: Duration,
    },
    /// A file cannot be used.
    #[error("{what} file {path} cannot be used: {reason}")]
    File {
        /// What it holds.
        what: &'static str,
        /// Which file.
        path: String,
        /// Why not.
        reason: String,
    },
}

impl EtcdConfig {
    /// One or more endpoints, everything else as by default: [`crate::DEFAULT_PREFIX`], no TLS, no user,
    /// [`crate::DEFAULT_LEASE_TTL`].
    pub fn new(endpoints: Vec<Address>) -> Self {
        Self {
            endpoints,
            prefix: Prefix::default(),
            tls: None,
            login: None,
            lease_ttl: crate::DEFAULT_LEASE_TTL,
            timing: Timing::default(),
        }
    }

    /// Checks the settings and that every file can be read.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.endpoints.is_empty() {
            return Err(ConfigError::NoEndpoint);
        }
        if let Some(odd) = self.endpoints.iter().find(|endpoint| self.tls.is_some() != endpoint.is_secure()) {
            let endpoint = odd.to_string();
            return Err(match odd.is_secure() {
                true => ConfigError::NoAuthority { endpoint },
                false => ConfigError::PlainEndpoint { endpoint },
            });
        }
        let whole = self.lease_ttl.subsec_nanos() == 0;
        if !whole || !(MIN_LEASE_TTL..=MAX_LEASE_TTL).contains(&self.lease_ttl) {
            return Err(ConfigError::LeaseTtl { actual: self.lease_ttl });
        }
        if let Some(tls) = &self.tls {
            tls.check()?;
        }
        self.login.as_ref().map_or(Ok(()), |login| login.password().map(drop))
    }

    /// What the client needs, from the files as they are now.
    pub(crate) fn options(&self) -> Result<ConnectOptions, ConfigError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.timing.request)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true);
        if let Some(tls) = &self.tls {
            options = options.with_tls(tls.options()?);
        }
        if let Some(login) = &self.login {
            options = options.with_user(&login.user, login.password()?);
        }
        Ok(options)
    }
}

impl TlsFiles {
    /// Reads the files and has a connector made of them, which looks into certificate and key.
    fn check(&self) -> Result<(), ConfigError> {
        let anywhere = Endpoint::from_static("https://etcd:2379");
        let connector = anywhere.tls_config(self.options()?);
        connector.map(drop).map_err(|error| ConfigError::Tls { reason: shown(&causes(&error)) })
    }

    fn options(&self) -> Result<TlsOptions, ConfigError> {
        let ca = read("etcd CA", &self.ca)?;
        if !ca.contains("-----BEGIN CERTIFICATE-----") {
            return Err(unusable("etcd CA", &self.ca, "it holds no certificate in PEM"));
        }
        let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
        if let Some((certificate, key)) = &self.identity {
            let certificate = read("etcd certificate", certificate)?;
            options = options.identity(Identity::from_pem(certificate, read("etcd key", key)?));
        }
        Ok(options)
    }
}

impl Login {
    fn password(&self) -> Result<String, ConfigError> {
        let password = read("etcd password", &self.password_file)?;
        match password.trim() {
            "" => Err(unusable("etcd password", &self.password_file, "it is empty")),
            password => Ok(password.to_owned()),
        }
    }
}

fn read(what: &'static str, path: &Path) -> Result<String, ConfigError> {
    let size = std::fs::metadata(path).map_err(|error| unusable(what, path, &error.to_string()))?.len();
    if size > MAX_FILE {
        return Err(unusable(what, path, &format!("it has {size} bytes, the limit is {MAX_FILE}")));
    }
    std::fs::read_to_string(path).map_err(|error| unusable(what, path, &error.to_string()))
}

fn unusable(what: &'static str, path: &Path, reason: &str) -> ConfigError {
    ConfigError::File { what, path: path.display().to_string(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoint: &str) -> EtcdConfig {
        EtcdConfig::new(vec![Address::parse(endpoint).unwrap()])
    }

    #[test]
    fn a_lease_is_whole_seconds_in_range() {
        for (milliseconds, fits) in
            [(0, false), (1000, true), (1500, false), (600_000, true), (601_000, false)]
        {
            let lease_ttl = Duration::from_millis(milliseconds);
            let config = EtcdConfig { lease_ttl, ..config("http://etcd:2379") };
            assert_eq!(config.check().is_ok(), fits, "{milliseconds}");
        }
    }

    #[test]
    fn certificates_for_a_plain_endpoint_are_refused() {
        let tls = Some(TlsFiles { ca: "ca.pem".into(), identity: None });
        let error = EtcdConfig { tls, ..config("http://etcd:2379") }.check().unwrap_err();
        assert!(matches!(error, ConfigError::PlainEndpoint { .. }), "{error}");
    }

    #[test]
    fn an_endpoint_over_tls_needs_an_authority() {
        let error = config("https://etcd:2379").check().unwrap_err();
        assert!(matches!(error, ConfigError::NoAuthority { .. }), "{error}");
    }

    #[test]
    fn files_that_hold_no_certificate_or_key_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let authority = rcgen::generate_simple_self_signed(["etcd".to_owned()]).unwrap();
        let (good, bad) = (folder.path().join("good.pem"), folder.path().join("bad.pem"));
        std::fs::write(&good, authority.cert.pem()).unwrap();
        std::fs::write(&bad, "garbage").unwrap();
        let check = |ca: &Path, identity| {
            let tls = Some(TlsFiles { ca: ca.into(), identity });
            EtcdConfig { tls, ..config("https://etcd:2379") }.check()
        };
        assert_eq!(check(&good, None), Ok(()));
        assert!(matches!(check(&bad, None), Err(ConfigError::File { .. })));
        let error = check(&good, Some((good.clone(), bad))).unwrap_err();
        assert!(matches!(&error, ConfigError::Tls { .. }), "{error}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let tls = Some(TlsFiles { ca: "/nowhere/ca.pem".into(), identity: None });
        let error = EtcdConfig { tls, ..config("https://etcd:2379") }.check().unwrap_err();
        assert!(error.to_string().contains("etcd CA file /nowhere/ca.pem"), "{error}");
    }

    #[test]
    fn an_empty_password_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let login = Some(Login { user: "thicket".into(), password_file: file.path().into() });
        let error = EtcdConfig { login, ..config("http://etcd:2379") }.check().unwrap_err();
        assert!(error.to_string().contains("it is empty"), "{error}");
    }
}
