use thicket_proto::v1::Filter;
use thicket_runtime::unix_ms;

/// Which items are searched.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Filter")]
pub(crate) struct FilterArgs {
    /// Only images whose metadata `camera` is this; several times for one of several
    #[arg(long = "camera", value_name = "NAME")]
    cameras: Vec<String>,
    /// Only images whose metadata `captured_at` is this or later, as in 2026-03-01T08:30:00+01:00
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<i64>,
    /// Only images whose metadata `captured_at` is earlier than this
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<i64>,
    /// Only images with this among their metadata `tags`; several times for all of several
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Only images with at least one of these among their tags
    #[arg(long = "any-tag", value_name = "TAG")]
    any_tags: Vec<String>,
}

impl FilterArgs {
    /// The filter as it is sent; `None` where nothing is asked for.
    pub(crate) fn filter(&self) -> Option<Filter> {
        let filter = Filter {
            cameras: self.cameras.clone(),
            captured_from_unix_ms: self.from,
            captured_until_unix_ms: self.until,
            tags_all: self.tags.clone(),
            tags_any: self.any_tags.clone(),
        };
        Some(filter).filter(|filter| *filter != Filter::default())
    }
}

fn time(text: &str) -> Result<i64, String> {
    unix_ms(text).ok_or_else(|| "write a time as in 2026-03-01T08:30:00+01:00".to_owned())
}
