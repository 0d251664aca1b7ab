use thicket_runtime::Role;

/// Where the coordinator of the running cluster is.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// Address of the coordinator
    #[arg(long, env = "THICKET_SERVER", value_name = "URL", default_value_t = default_url(Role::Coordinator))]
    pub(crate) server: String,
    #[command(flatten)]
    token: TokenArgs,
}

/// Where the gallery of the running cluster is.
#[derive(Debug, clap::Args)]
pub(crate) struct GalleryArgs {
    /// Address of the gallery
    #[arg(long, env = "THICKET_GALLERY", value_name = "URL", default_value_t = default_url(Role::Gallery))]
    pub(crate) gallery: String,
    #[command(flatten)]
    token: TokenArgs,
}

/// Where the answer service of the running cluster is.
#[derive(Debug, clap::Args)]
pub(crate) struct AnswerServerArgs {
    /// Address of the answer service
    #[arg(long, env = "THICKET_ANSWER", value_name = "URL", default_value_t = default_url(Role::Answer), global = true)]
    pub(crate) answer: String,
    #[command(flatten)]
    token: TokenArgs,
}

#[derive(Debug, clap::Args)]
struct TokenArgs {
    /// Bearer token, where the cluster wants one; the environment variable keeps it out of the process list
    #[arg(long, env = "THICKET_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
}

impl ServerArgs {
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.token.as_deref()
    }
}

impl GalleryArgs {
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.token.as_deref()
    }
}

impl AnswerServerArgs {
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.token.as_deref()
    }
}

fn default_url(role: Role) -> String {
    format!("http://{}", role.default_listen())
}
