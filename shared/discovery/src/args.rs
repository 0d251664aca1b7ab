use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use thicket_runtime::{Failure, Role, parse_duration};

use crate::config::{ConfigError, EtcdConfig, Login, Timing, TlsFiles};
use crate::keys::Prefix;
use crate::{Address, AddressError, Announcement, InstanceId, Member};

/// How long a registration outlives its process unless told otherwise.
pub const DEFAULT_LEASE_TTL: Duration = Duration::from_secs(10);

/// Flags about discovery, for `#[command(flatten)]`.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Discovery")]
pub struct DiscoveryArgs {
    /// Client addresses of etcd, as in `http://etcd-0:2379,http://etcd-1:2379`; without them nothing is registered
    #[arg(long, env = "THICKET_ETCD", value_name = "URL", value_delimiter = ',')]
    pub etcd: Vec<Address>,
    /// What this cluster's keys in etcd begin with [default: /thicket]
    #[arg(long, env = "THICKET_ETCD_PREFIX", value_name = "PATH", requires = "etcd")]
    pub etcd_prefix: Option<Prefix>,
    /// PEM file of the authority that signed etcd's certificates, for `https` addresses
    #[arg(long, env = "THICKET_ETCD_CA", value_name = "FILE", requires = "etcd")]
    pub etcd_ca: Option<PathBuf>,
    /// PEM file of the certificate that etcd knows this process by
    #[arg(long, env = "THICKET_ETCD_CERT", value_name = "FILE", requires_all = ["etcd_ca", "etcd_key"])]
    pub etcd_cert: Option<PathBuf>,
    /// PEM file of the key of that certificate
    #[arg(long, env = "THICKET_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// User that etcd knows this process by
    #[arg(long, env = "THICKET_ETCD_USER", value_name = "NAME", requires_all = ["etcd", "etcd_password_file"])]
    pub etcd_user: Option<String>,
    /// File with that user's password
    #[arg(long, env = "THICKET_ETCD_PASSWORD_FILE", value_name = "FILE", requires = "etcd_user")]
    pub etcd_password_file: Option<PathBuf>,
    /// Address that other roles call this one at, as in `http://gallery-0.gallery:7702`; the one it listens on unless given,
    /// which does for one machine only
    #[arg(long, env = "THICKET_ADVERTISE", value_name = "URL", requires = "etcd")]
    pub advertise: Option<Address>,
    /// Name of this process among those of its role; a random one unless given
    #[arg(long, env = "THICKET_INSTANCE", value_name = "NAME", requires = "etcd")]
    pub instance: Option<InstanceId>,
    /// How long the others take this process for alive after its death [default: 10s]
    #[arg(long, env = "THICKET_LEASE_TTL", value_name = "TIME", value_parser = parse_duration, requires = "etcd")]
    pub lease_ttl: Option<Duration>,
}

/// Why the flags do not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// The settings of etcd do not do.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no address that others could call.
    #[error("--advertise is missing: others cannot call {listen} ({})", .reason.reason)]
    Advertise {
        /// The address listened on.
        listen: SocketAddr,
        /// Why it does not do.
        reason: AddressError,
    },
}

impl DiscoveryArgs {
    /// The settings of etcd, checked; `None` where no etcd is named.
    ///
    /// # Errors
    /// [`ArgsError::Config`] for a lease time out of range, certificates for a plain address, or a file that cannot be
    /// read.
    pub fn etcd(&self) -> Result<Option<EtcdConfig>, ArgsError> {
        if self.etcd.is_empty() {
            return Ok(None);
        }
        let identity = self.etcd_cert.clone().zip(self.etcd_key.clone());
        let login = self.etcd_user.clone().zip(self.etcd_password_file.clone());
        let config = EtcdConfig {
            endpoints: self.etcd.clone(),
            prefix: self.etcd_prefix.clone().unwrap_or_default(),
            tls: self.etcd_ca.clone().map(|ca| TlsFiles { ca, identity }),
            login: login.map(|(user, password_file)| Login { user, password_file }),
            lease_ttl: self.lease_ttl.unwrap_or(DEFAULT_LEASE_TTL),
            timing: Timing::default(),
        };
        config.check()?;
        Ok(Some(config))
    }

    /// What a role does to be found, listening on `listen` (the bound address, with its real port); `None` where no etcd is
    /// named.
    ///
    /// # Errors
    /// As [`Self::etcd`] and [`Self::member`].
    pub fn announcement(&self, role: Role, listen: SocketAddr) -> Result<Option<Announcement>, ArgsError> {
        let Some(etcd) = self.etcd()? else { return Ok(None) };
        Ok(Some(Announcement { etcd, member: self.member(role, listen)? }))
    }

    /// This process as a member, listening on `listen` (the bound address, with its real port); without model, adapters and
    /// collections yet.
    ///
    /// # Errors
    /// [`ArgsError::Advertise`] where no address is advertised and `listen` is one that nobody can call.
    pub fn member(&self, role: Role, listen: SocketAddr) -> Result<Member, ArgsError> {
        let address = match &self.advertise {
            Some(address) => address.clone(),
            None => Address::of_ip(listen.ip(), listen.port())
                .map_err(|reason| ArgsError::Advertise { listen, reason })?,
        };
        let instance = self.instance.clone().unwrap_or_else(InstanceId::random);
        Ok(Member::new(role, instance, address))
    }
}

impl From<ArgsError> for Failure {
    fn from(error: ArgsError) -> Self {
        Self::BadInput(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        discovery: DiscoveryArgs,
    }

    fn parse(flags: &[&str]) -> Result<DiscoveryArgs, clap::Error> {
        Command::try_parse_from([&["thicket"], flags].concat()).map(|command| command.discovery)
    }

    #[test]
    fn without_etcd_there_is_nothing_to_configure() {
        assert!(parse(&[]).unwrap().etcd().unwrap().is_none());
    }

    #[test]
    fn several_endpoints_stand_in_one_flag() {
        let args = parse(&["--etcd", "http://a:2379,http://b:2379"]).unwrap();
        let config = args.etcd().unwrap().unwrap();
        let endpoints: Vec<_> = config.endpoints.iter().map(Address::to_string).collect();
        assert_eq!(endpoints, ["http://a:2379", "http://b:2379"]);
        assert_eq!(config.prefix.to_string(), crate::DEFAULT_PREFIX);
        assert_eq!(config.lease_ttl, DEFAULT_LEASE_TTL);
    }

    #[test]
    fn a_flag_that_would_have_no_effect_is_refused() {
        for flags in [
            &["--etcd-prefix", "/people"][..],
            &["--advertise", "http://a:1"],
            &["--lease-ttl", "5s"],
            &["--etcd", "http://a:1", "--etcd-cert", "cert.pem"],
            &["--etcd", "http://a:1", "--etcd-key", "key.pem"],
            &["--etcd", "http://a:1", "--etcd-user", "me"],
            &["--etcd", "http://a:1", "--etcd-password-file", "password"],
        ] {
            assert!(parse(flags).is_err(), "{flags:?}");
        }
    }

    #[test]
    fn malformed_values_are_refused() {
        for flags in [
            ["--etcd", "etcd:2379"],
            ["--etcd", "http://a:2379,"],
            ["--etcd", "http://a:2379,http://b"],
            ["--etcd", ""],
        ] {
            assert!(parse(&flags).is_err(), "{flags:?}");
        }
        let etcd = ["--etcd", "http://a:2379"];
        for flags in [
            ["--etcd-prefix", "people"],
            ["--instance", "a/b"],
            ["--advertise", "http://0.0.0.0:7702"],
            ["--lease-ttl", "soon"],
        ] {
            assert!(parse(&[&etcd[..], &flags].concat()).is_err(), "{flags:?}");
        }
        assert!(parse(&[&etcd[..], &["--lease-ttl", "500ms"]].concat()).unwrap().etcd().is_err());
    }

    #[test]
    fn the_address_advertised_is_the_one_listened_on_unless_given() {
        let args = parse(&["--etcd", "http://a:2379", "--instance", "gallery-0"]).unwrap();
        let member = args.member(Role::Gallery, "10.0.0.7:7702".parse().unwrap()).unwrap();
        assert_eq!(member.address.to_string(), "http://10.0.0.7:7702");
        assert_eq!(member.instance.as_str(), "gallery-0");
        let error = args.member(Role::Gallery, "0.0.0.0:7702".parse().unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("--advertise is missing"), "{error}");
        let given = ["--etcd", "http://a:2379", "--advertise", "http://gallery-0:7702"];
        let member = parse(&given).unwrap().member(Role::Gallery, "0.0.0.0:7702".parse().unwrap()).unwrap();
        assert_eq!(member.address.to_string(), "http://gallery-0:7702");
    }

    #[test]
    fn every_flag_is_an_environment_variable() {
        let command = DiscoveryArgs::augment_args(clap::Command::new("thicket"));
        for flag in command.get_arguments() {
            let name = flag.get_long().unwrap().replace('-', "_").to_uppercase();
            let variable = flag.get_env().and_then(|name| name.to_str()).unwrap_or_default();
            assert_eq!(variable, format!("THICKET_{name}"));
        }
    }
}
