//! What the answer model is asked and how its text is read.
//!
//! The wording is data: five templates in a TOML file that an operator can replace, because an adapter answers best
//! in the wording it was trained with. The default is `prompts.toml` beside this file.

mod answers;
pub mod describe;
mod list;

use std::collections::BTreeSet;

use minijinja::value::Value;
use minijinja::{Environment, UndefinedBehavior, context};
use serde::Deserialize;

pub use answers::{is_yes, lines, usable_refinement};
pub use list::python_list;

/// The default wording, as the TOML file an operator starts from.
pub const DEFAULT_PROMPTS: &str = include_str!("prompts.toml");

/// Changes whenever the meaning of a template file changes, so that versions never collide across it.
const VERSION_DOMAIN: &str = "thicket prompts 1";

/// One of the five templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Template {
    /// Does the text describe the image? Variable: `caption`.
    Locate,
    /// The attribute questions about an image. No variables.
    Describe,
    /// Merge a query and attribute sentences. Variable: `subtexts`.
    Aggregate,
    /// Split a description into single-attribute sentences. Variable: `text`.
    Decompose,
    /// Say a sentence in other words. Variables: `text`, `count`.
    Rewrite,
}

impl Template {
    /// All of them, in the order of the file.
    pub const ALL: [Self; 5] =
        [Self::Locate, Self::Describe, Self::Aggregate, Self::Decompose, Self::Rewrite];

    /// Its table in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Locate => "locate",
            Self::Describe => "describe",
            Self::Aggregate => "aggregate",
            Self::Decompose => "decompose",
            Self::Rewrite => "rewrite",
        }
    }

    /// The variables it must use, no more and no less.
    pub fn variables(self) -> &'static [&'static str] {
        match self {
            Self::Locate => &["caption"],
            Self::Describe => &[],
            Self::Aggregate => &["subtexts"],
            Self::Decompose => &["text"],
            Self::Rewrite => &["text", "count"],
        }
    }
}

impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A prompt file that cannot be used, or a template that failed on its input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// The file is not TOML, or has a table or key that means nothing here.
    #[error("the prompt file cannot be read: {reason}")]
    File {
        /// What is wrong and where, on one line.
        reason: String,
    },
    /// A template is not valid minijinja.
    #[error("prompt template {template}, line {line}: {reason}")]
    Syntax {
        /// Which template.
        template: Template,
        /// Line in the template, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A template uses a name that it is not given.
    #[error("prompt template {template} uses {variable}, but it is given only {allowed:?}")]
    UnknownVariable {
        /// Which template.
        template: Template,
        /// The name.
        variable: String,
        /// What it is given.
        allowed: &'static [&'static str],
    },
    /// A template leaves out something that it must tell the model.
    #[error("prompt template {template} does not use {variable}")]
    MissingVariable {
        /// Which template.
        template: Template,
        /// The variable it must use.
        variable: &'static str,
    },
    /// A template renders to white space.
    #[error("prompt template {template} is empty")]
    Empty {
        /// Which template.
        template: Template,
    },
    /// A template fails while rendering.
    #[error("prompt template {template} fails to render: {reason}")]
    Render {
        /// Which template.
        template: Template,
        /// What is wrong.
        reason: String,
    },
}

/// Five checked templates.
#[derive(Debug, Clone)]
pub struct PromptSet {
    environment: Environment<'static>,
    sources: [String; 5],
    version: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptFile {
    locate: Option<Table>,
    describe: Option<Table>,
    aggregate: Option<Table>,
    decompose: Option<Table>,
    rewrite: Option<Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    template: String,
}

impl PromptFile {
    fn read(toml: &str) -> Result<Self, PromptError> {
        toml::from_str(toml).map_err(|error| {
            let line = error.span().map_or(1, |span| toml[..span.start].matches('\n').count() + 1);
            let reason = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            PromptError::File { reason: format!("line {line}: {reason}") }
        })
    }

    /// The sources in the order of [`Template::ALL`].
    fn sources(self) -> [Option<String>; 5] {
        [self.locate, self.describe, self.aggregate, self.decompose, self.rewrite]
            .map(|table| table.map(|table| table.template))
    }
}

impl PromptSet {
    /// Reads a prompt file. A table that is left out keeps its default wording.
    ///
    /// # Errors
    /// [`PromptError`] where the file is not TOML of the known tables, or a template does not parse, does not use
    /// exactly its variables, fails to render or is empty.
    pub fn parse(toml: &str) -> Result<Self, PromptError> {
        let defaults = PromptFile::read(DEFAULT_PROMPTS)?.sources();
        let mut given = PromptFile::read(toml)?.sources().into_iter();
        let sources = defaults.map(|default| given.next().flatten().or(default).unwrap_or_default());

        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let mut hasher = blake3::Hasher::new_derive_key(VERSION_DOMAIN);
        for (template, source) in Template::ALL.into_iter().zip(&sources) {
            environment.add_template_owned(template.name(), source.clone()).map_err(|error| {
                PromptError::Syntax { template, line: error.line().unwrap_or(1), reason: one_line(&error) }
            })?;
            check_variables(&environment, template)?;
            hasher.update(&(source.len() as u64).to_le_bytes());
            hasher.update(source.as_bytes());
        }
        let version = short_hex(&hasher.finalize());
        let set = Self { environment, sources, version };
        // A filter that does not exist is noticed only while rendering.
        for (template, rendered) in [
            (Template::Locate, set.locate("a person")?),
            (Template::Describe, set.describe()?),
            (Template::Aggregate, set.aggregate(&["a person".to_owned()])?),
            (Template::Decompose, set.decompose("a person")?),
            (Template::Rewrite, set.rewrite("a person", 1)?),
        ] {
            if rendered.trim().is_empty() {
                return Err(PromptError::Empty { template });
            }
        }
        Ok(set)
    }

    /// Hex digest of the wording of all templates: equal versions ask the same in the same words.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Hex digest of the wording of one template, for results that depend on that one alone.
    pub fn template_version(&self, template: Template) -> String {
        let mut hasher = blake3::Hasher::new_derive_key(VERSION_DOMAIN);
        hasher.update(template.name().as_bytes());
        hasher.update(&[0]);
        hasher.update(self.source(template).as_bytes());
        short_hex(&hasher.finalize())
    }

    /// A template as written.
    pub fn source(&self, template: Template) -> &str {
        &self.sources[template as usize]
    }

    /// The localisation question about an image (Eq. 2 of the ICL paper, CVPR 2025), with the *original* text.
    ///
    /// # Errors
    /// [`PromptError::Render`] where an operator's template fails on this input; so for the other four.
    pub fn locate(&self, caption: &str) -> Result<String, PromptError> {
        self.render(Template::Locate, context! { caption })
    }

    /// The attribute questions about an image (Eq. 4). Independent of any query.
    ///
    /// # Errors
    /// As [`PromptSet::locate`].
    pub fn describe(&self) -> Result<String, PromptError> {
        self.render(Template::Describe, context! {})
    }

    /// The request to merge sub-texts (Eq. 5): the original text followed by the sentences of
    /// [`describe::sentences`].
    ///
    /// # Errors
    /// As [`PromptSet::locate`].
    pub fn aggregate(&self, subtexts: &[String]) -> Result<String, PromptError> {
        self.render(Template::Aggregate, context! { subtexts => python_list(subtexts) })
    }

    /// The request to split a description into single-attribute sentences, for training data.
    ///
    /// # Errors
    /// As [`PromptSet::locate`].
    pub fn decompose(&self, text: &str) -> Result<String, PromptError> {
        self.render(Template::Decompose, context! { text })
    }

    /// The request to say one sentence in `count` other ways, for training data.
    ///
    /// # Errors
    /// As [`PromptSet::locate`].
    pub fn rewrite(&self, text: &str, count: usize) -> Result<String, PromptError> {
        self.render(Template::Rewrite, context! { text, count })
    }

    fn render(&self, template: Template, variables: Value) -> Result<String, PromptError> {
        self.environment
            .get_template(template.name())
            .and_then(|compiled| compiled.render(variables))
            .map_err(|error| PromptError::Render { template, reason: one_line(&error) })
    }
}

impl Default for PromptSet {
    /// The default wording.
    fn default() -> Self {
        Self::parse(DEFAULT_PROMPTS).expect("the built-in prompts are checked by a test")
    }
}

fn check_variables(environment: &Environment<'_>, template: Template) -> Result<(), PromptError> {
    let compiled = environment
        .get_template(template.name())
        .map_err(|error| PromptError::Render { template, reason: one_line(&error) })?;
    let used: BTreeSet<String> = compiled.undeclared_variables(false).into_iter().collect();
    let allowed = template.variables();
    if let Some(variable) = used.iter().find(|name| !allowed.contains(&name.as_str())) {
        return Err(PromptError::UnknownVariable { template, variable: variable.clone(), allowed });
    }
    match allowed.iter().find(|name| !used.contains(**name)) {
        Some(&variable) => Err(PromptError::MissingVariable { template, variable }),
        None => Ok(()),
    }
}

fn one_line(error: &minijinja::Error) -> String {
    let text = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The first 16 bytes, which nobody has to fear to collide.
fn short_hex(hash: &blake3::Hash) -> String {
    hash.to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(toml: &str) -> PromptError {
        PromptSet::parse(toml).unwrap_err()
    }

    #[test]
    fn the_default_wording_is_valid() {
        let prompts = PromptSet::parse(DEFAULT_PROMPTS).unwrap();
        assert_eq!(prompts.version(), PromptSet::default().version());
        assert_eq!(prompts.version().len(), 32);
    }

    #[test]
    fn locate_shows_the_caption_and_asks_for_yes_or_no() {
        let prompt = PromptSet::default().locate("a man in <red> & {{ blue }}").unwrap();
        assert!(prompt.contains("\n\nText: a man in <red> & {{ blue }}\n\n"));
        assert!(prompt.contains("\"Yes\"") && prompt.contains("\"No\""));
    }

    #[test]
    fn describe_asks_fifteen_numbered_questions() {
        let prompt = PromptSet::default().describe().unwrap();
        let numbers = prompt.lines().filter_map(|line| line.split_once(". ")?.0.parse().ok());
        assert_eq!(numbers.collect::<Vec<usize>>(), (1..=15).collect::<Vec<_>>());
    }

    #[test]
    fn aggregate_lists_the_subtexts_like_python() {
        let prompt = PromptSet::default().aggregate(&["it's red".into(), String::new()]).unwrap();
        assert!(prompt.contains("Subtexts: [\"it's red\", '']\n"));
    }

    #[test]
    fn rewrite_names_how_many_it_wants() {
        assert!(PromptSet::default().rewrite("A red coat.", 7).unwrap().contains(" 7 different ways"));
    }

    #[test]
    fn a_file_replaces_only_the_tables_it_has() {
        let prompts = PromptSet::parse("[locate]\ntemplate = \"{{ caption }}?\"").unwrap();
        assert_eq!(prompts.locate("A").unwrap(), "A?");
        assert_eq!(prompts.describe(), PromptSet::default().describe());
        assert_ne!(prompts.version(), PromptSet::default().version());
        let same =
            |template| prompts.template_version(template) == PromptSet::default().template_version(template);
        assert!(same(Template::Describe) && !same(Template::Locate));
    }

    #[test]
    fn a_broken_template_is_named_with_its_line() {
        let error = refused("[locate]\ntemplate = \"Is it?\\n{{ caption\"");
        assert!(matches!(error, PromptError::Syntax { template: Template::Locate, line: 2, .. }), "{error}");
    }

    #[test]
    fn a_template_must_use_exactly_its_variables() {
        assert_eq!(
            refused("[aggregate]\ntemplate = \"Merge them.\""),
            PromptError::MissingVariable { template: Template::Aggregate, variable: "subtexts" }
        );
        assert_eq!(
            refused("[describe]\ntemplate = \"Describe {{ caption }}.\""),
            PromptError::UnknownVariable {
                template: Template::Describe,
                variable: "caption".into(),
                allowed: &[]
            }
        );
    }

    #[test]
    fn a_filter_that_does_not_exist_is_noticed_at_load() {
        let error = refused("[locate]\ntemplate = \"{{ caption | shout }}\"");
        assert!(error.to_string().starts_with("prompt template locate"), "{error}");
    }

    #[test]
    fn an_empty_template_is_refused() {
        assert_eq!(
            refused("[describe]\ntemplate = \"  \""),
            PromptError::Empty { template: Template::Describe }
        );
    }

    #[test]
    fn a_damaged_file_is_refused_on_one_line() {
        for toml in ["[locate\n", "[wrong]\ntemplate = 'x'", "[locate]\ntemplate = 1"] {
            let message = refused(toml).to_string();
            assert!(message.starts_with("the prompt file cannot be read: line "), "{message}");
            assert!(!message.contains('\n'));
        }
    }
}
