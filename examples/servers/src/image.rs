//! The one place that names the images of containers.

use std::process::{Command, Stdio};

/// An image that a suite starts: where it is when nobody says otherwise, what `.ci/setup` builds where that is not to be had,
/// and the variable by which a site names its own.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    variable: &'static str,
    default: &'static str,
    built: &'static str,
}

/// PostgreSQL 15, the oldest that is supported.
pub const POSTGRES: Image = Image {
    variable: "LAB_TEST_POSTGRES_IMAGE",
    default: "docker.io/library/postgres:15",
    built: "pim-lab/postgres:ci",
};

impl Image {
    /// The environment variable that names another image.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        self.variable
    }

    /// Name and tag: those of the variable, else of the default, else of what was built, if that alone is here. What is
    /// nowhere is the default, which the engine asks a registry for.
    #[must_use]
    pub fn name_and_tag(self) -> (String, String) {
        split(&self.choose(self.named(), is_here))
    }

    /// Which image a suite would start without asking a registry.
    ///
    /// # Errors
    /// A sentence that names what is not here.
    pub fn find(self) -> Result<String, String> {
        self.find_among(self.named(), is_here)
    }

    /// As `.ci/setup` takes it: empty is none.
    fn named(self) -> Option<String> {
        std::env::var(self.variable).ok().filter(|named| !named.is_empty())
    }

    fn choose(self, named: Option<String>, is_here: impl Fn(&str) -> bool) -> String {
        match named {
            Some(named) => named,
            None if !is_here(self.default) && is_here(self.built) => self.built.to_owned(),
            None => self.default.to_owned(),
        }
    }

    fn find_among(self, named: Option<String>, is_here: impl Fn(&str) -> bool) -> Result<String, String> {
        let chosen = self.choose(named.clone(), &is_here);
        match named {
            _ if is_here(&chosen) => Ok(chosen),
            Some(named) => Err(format!("{named} is not here: get it, or unset {}", self.variable)),
            None => Err(format!("neither {} nor {} is here", self.default, self.built)),
        }
    }
}

/// Whether the engine has it already.
fn is_here(image: &str) -> bool {
    let mut docker = Command::new("docker");
    docker.args(["image", "inspect", "--format", "{{.Id}}", image]);
    docker.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    docker.status().is_ok_and(|status| status.success())
}

/// A colon before the last slash belongs to the registry's port.
fn split(image: &str) -> (String, String) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name.to_owned(), tag.to_owned()),
        _ => (image.to_owned(), "latest".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{POSTGRES, split};

    const SETUP: &str = include_str!("../../../.ci/setup");

    #[test]
    fn name_and_tag_are_told_apart() {
        for (image, name, tag) in [
            ("postgres:15", "postgres", "15"),
            ("postgres", "postgres", "latest"),
            ("registry:5000/a/postgres", "registry:5000/a/postgres", "latest"),
            ("registry:5000/a/postgres:16", "registry:5000/a/postgres", "16"),
        ] {
            assert_eq!(split(image), (name.to_owned(), tag.to_owned()), "{image}");
        }
    }

    #[test]
    fn what_was_built_stands_in_for_a_default_that_is_not_here() {
        let (default, built) = (POSTGRES.default, POSTGRES.built);
        for (here, chosen) in
            [(&[][..], default), (&[default], default), (&[built], built), (&[default, built], default)]
        {
            let is_here = |image: &str| here.contains(&image);
            assert_eq!(POSTGRES.choose(None, is_here), chosen, "{here:?}");
            assert_eq!(
                POSTGRES.choose(Some("a/b:c".to_owned()), is_here),
                "a/b:c",
                "{here:?}: a site's own comes first"
            );
        }
    }

    #[test]
    fn an_image_that_is_not_here_is_named() {
        let built = |image: &str| image == POSTGRES.built;
        assert_eq!(POSTGRES.find_among(None, built).as_deref(), Ok(POSTGRES.built));
        assert_eq!(POSTGRES.find_among(Some("a/b:c".to_owned()), |_| true).as_deref(), Ok("a/b:c"));
        let why = POSTGRES.find_among(None, |_| false).expect_err("none is here");
        assert!(why.contains(POSTGRES.default) && why.contains(POSTGRES.built), "{why}");
        let why = POSTGRES.find_among(Some("a/b:c".to_owned()), built).expect_err("it is not here");
        assert!(why.contains("a/b:c") && why.contains(POSTGRES.variable), "{why}");
    }

    #[test]
    fn what_is_built_is_what_the_set_up_builds() {
        assert!(SETUP.contains(&format!("\nimage={}\n", POSTGRES.built)), ".ci/setup builds another image");
    }
}
