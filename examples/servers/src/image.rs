//! The one place that names the images of containers.

/// An image that a suite starts: where it is when nobody says otherwise, and the variable by which a site names its own.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    variable: &'static str,
    default: &'static str,
}

/// PostgreSQL 15, the oldest that is supported.
pub const POSTGRES: Image = Image { variable: "LAB_TEST_POSTGRES_IMAGE", default: "docker.io/library/postgres:15" };

impl Image {
    /// The environment variable that names another image.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        self.variable
    }

    /// Name and tag.
    #[must_use]
    pub fn name_and_tag(self) -> (String, String) {
        let chosen = std::env::var(self.variable).unwrap_or_else(|_| self.default.to_owned());
        split(&chosen)
    }
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
    use super::split;

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
}
