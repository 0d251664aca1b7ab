use std::path::{Path, PathBuf};

use etcd_client::{Permission, PermissionType, RoleGrantPermissionResponse};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use thicket_discovery::{EtcdConfig, Link, Login, TlsFiles};
use thicket_runtime::Role;

use crate::etcd::{Etcd, ip};
use crate::support::{are, follow, is_up, member, register, sees, within};

/// An authority and what it signed, as PEM files in a folder.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn file(&self, folder: &Path, name: &str) -> PathBuf {
        written(folder, name, &self.certificate.pem())
    }

    /// Certificate and key for a name, for either end of a connection.
    fn issue(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (
            written(folder, &format!("{name}.pem"), &certificate.pem()),
            written(folder, &format!("{name}.key"), &key.serialize_pem()),
        )
    }
}

fn written(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn flags(authority: &Path, (certificate, key): &(PathBuf, PathBuf)) -> Vec<String> {
    vec![
        format!("--trusted-ca-file={}", authority.display()),
        format!("--cert-file={}", certificate.display()),
        format!("--key-file={}", key.display()),
        "--client-cert-auth".to_owned(),
    ]
}

#[tokio::test]
async fn etcd_is_used_over_tls_with_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let ca = authority.file(folder.path(), "ca.pem");
    let server = authority.issue(folder.path(), &ip().to_string());
    let Some(etcd) = Etcd::secured(&flags(&ca, &server)) else { return };
    let identity = Some(authority.issue(folder.path(), "thicket"));
    let config = EtcdConfig { tls: Some(TlsFiles { ca, identity }), ..etcd.config() };
    let directory = follow(&config);
    let registration = register(&config, member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    registration.close().await.unwrap();
}

#[tokio::test]
async fn an_etcd_with_a_certificate_of_another_authority_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let ca = authority.file(folder.path(), "ca.pem");
    let server = authority.issue(folder.path(), &ip().to_string());
    let Some(etcd) = Etcd::secured(&flags(&ca, &server)) else { return };
    let identity = Some(authority.issue(folder.path(), "thicket"));
    let trusting = EtcdConfig { tls: Some(TlsFiles { ca, identity: identity.clone() }), ..etcd.config() };
    let other = Authority::new().file(folder.path(), "other.pem");
    let config = EtcdConfig { tls: Some(TlsFiles { ca: other, identity }), ..etcd.config() };
    is_up(&follow(&trusting)).await;
    let directory = follow(&config);
    let mut link = directory.link();
    let refused = |link: &Link| match link {
        Link::Down { reason } => reason.contains("certificate"),
        Link::Up { .. } => panic!("it was trusted"),
    };
    within(link.wait_for(refused)).await.unwrap();
}

#[tokio::test]
async fn etcd_is_used_as_the_user_of_a_password_file() {
    let Some(etcd) = Etcd::start().await else { return };
    let client = etcd.client().await;
    demand_passwords(&client.auth_client()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let password_file = written(folder.path(), "password", "wrong\n");
    let login = Some(Login { user: "thicket".to_owned(), password_file: password_file.clone() });
    let config = EtcdConfig { login, ..etcd.config() };
    let directory = follow(&config);
    let mut link = directory.link();
    let refused = |link: &Link| match link {
        Link::Down { reason } => reason.contains("authentication failed"),
        Link::Up { .. } => panic!("it was let in"),
    };
    within(link.wait_for(refused)).await.unwrap();
    // The file is read at every attempt.
    written(folder.path(), "password", "secret\n");
    is_up(&directory).await;
    let registration = register(&config, member(Role::Gallery, "a")).await;
    sees(&directory, are(["a"])).await;
    registration.close().await.unwrap();
    sees(&directory, are([])).await;
}

/// Turns access control on: `root` may all, `thicket` its own keys, with the password `secret`.
async fn demand_passwords(
    client: &etcd_client::AuthClient,
) -> Result<RoleGrantPermissionResponse, etcd_client::Error> {
    let mut client = client.clone();
    let own = Permission::new(PermissionType::Readwrite, "/thicket/").with_prefix();
    client.role_add("root").await?;
    client.user_add("root", "root", None).await?;
    client.user_grant_role("root", "root").await?;
    client.role_add("member").await?;
    let granted = client.role_grant_permission("member", own).await?;
    client.user_add("thicket", "secret", None).await?;
    client.user_grant_role("thicket", "member").await?;
    client.auth_enable().await?;
    Ok(granted)
}
