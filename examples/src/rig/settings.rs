//! One settings tree a program: defaults, then a YAML file, then `PIM_…` variables, then flags; an unknown key is an error.
//!
//! `PIM_LISTEN` overlays `listen`, `PIM_BROKER__JWKS_URL` overlays `broker.jwks_url`: two underscores go one level down.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Variables with this prefix are settings.
const ENVIRONMENT_PREFIX: &str = "PIM_";
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Settings that cannot be used. Each names the place and the fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read settings from {}: check the path given to --config", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is larger than settings ever are.
    #[error("{} has more than {FILE_BYTES_MAX} bytes: is it a settings file?", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// The file is no YAML.
    #[error("{} is not well-formed YAML: {source}", path.display())]
    Yaml {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_norway::Error,
    },
    /// Nobody knows the key.
    #[error("unknown key `{key}` in {origin}: {fix}")]
    UnknownKey {
        /// The whole key.
        key: String,
        /// Where it stands.
        origin: String,
        /// What to do.
        fix: String,
    },
    /// The servers cannot be used.
    #[error(transparent)]
    Postgres(#[from] super::PostgresError),
    /// The value does not fit its key.
    #[error("`{key}` in {origin} does not fit: {rule}")]
    Value {
        /// The whole key.
        key: String,
        /// Where it stands.
        origin: String,
        /// What it must be.
        rule: String,
    },
}

/// Collects the layers of a settings tree whose defaults say which keys there are.
#[derive(Debug)]
pub struct Layers<T> {
    tree: Value,
    settings: T,
}

impl<T: Serialize + DeserializeOwned + Default> Default for Layers<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Serialize + DeserializeOwned + Default> Layers<T> {
    /// The defaults alone.
    #[must_use]
    pub fn new() -> Self {
        let settings = T::default();
        Self { tree: serde_json::to_value(&settings).unwrap_or_default(), settings }
    }

    /// Lays a YAML file over.
    ///
    /// # Errors
    /// [`SettingsError`] naming the key and the fix.
    pub fn file(self, path: &Path) -> Result<Self, SettingsError> {
        let read = |source| SettingsError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > FILE_BYTES_MAX {
            return Err(SettingsError::TooLarge { path: path.to_owned() });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let yaml = |source| SettingsError::Yaml { path: path.to_owned(), source };
        let tree: Value = serde_norway::from_str(&text).map_err(yaml)?;
        let origin = path.display().to_string();
        match tree {
            Value::Null => Ok(self),
            Value::Object(members) => self.overlay(&[], members, &origin),
            _ => Err(SettingsError::Value { key: String::new(), origin, rule: "must be a mapping".to_owned() }),
        }
    }

    /// Lays variables over; those without the prefix are somebody else's.
    ///
    /// # Errors
    /// [`SettingsError`] naming the variable and the fix.
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, SettingsError> {
        let mut ours: Vec<_> = variables
            .into_iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(ENVIRONMENT_PREFIX)?.to_ascii_lowercase(), value)))
            .collect();
        ours.sort();
        for (name, text) in ours {
            let path: Vec<String> = name.split("__").map(str::to_owned).collect();
            // Text is YAML too, so that numbers and lists can be said.
            let origin = "the environment";
            let value = match self.at(&path) {
                Some(Value::String(_) | Value::Null) => Value::from(text),
                _ => serde_norway::from_str(&text).unwrap_or(Value::from(text)),
            };
            self = self.set(&path, value, origin)?;
        }
        Ok(self)
    }

    /// Lays one value of a flag over, when it was given; a dot in the key goes one level down.
    ///
    /// # Errors
    /// [`SettingsError`] when it does not fit.
    pub fn flag(self, key: &str, value: Option<impl Into<Value>>) -> Result<Self, SettingsError> {
        match value {
            Some(value) => {
                let path: Vec<String> = key.split('.').map(str::to_owned).collect();
                self.set(&path, value.into(), "the command line")
            }
            None => Ok(self),
        }
    }

    /// The settings in force.
    #[must_use]
    pub fn into_settings(self) -> T {
        self.settings
    }

    fn at(&self, path: &[String]) -> Option<&Value> {
        path.iter().try_fold(&self.tree, |tree, name| tree.get(name))
    }

    fn overlay(mut self, under: &[String], members: Map<String, Value>, origin: &str) -> Result<Self, SettingsError> {
        for (name, value) in members {
            let mut path = under.to_vec();
            path.push(name);
            self = match (self.at(&path), value) {
                (Some(Value::Object(_)), Value::Object(below)) => self.overlay(&path, below, origin)?,
                (_, value) => self.set(&path, value, origin)?,
            };
        }
        Ok(self)
    }

    /// One leaf at a time, so that whatever does not fit is named by its key.
    fn set(mut self, path: &[String], value: Value, origin: &str) -> Result<Self, SettingsError> {
        let key = path.join(".");
        let Some(slot) = path.iter().try_fold(&mut self.tree, |tree, name| tree.get_mut(name)) else {
            return Err(SettingsError::UnknownKey { fix: self.fix_for(path), key, origin: origin.to_owned() });
        };
        *slot = value;
        match T::deserialize(&self.tree) {
            Ok(settings) => Ok(Self { settings, ..self }),
            Err(error) => Err(SettingsError::Value { key, origin: origin.to_owned(), rule: error.to_string() }),
        }
    }

    fn fix_for(&self, path: &[String]) -> String {
        let level = path.split_last().and_then(|(last, above)| Some((last, self.at(above)?.as_object()?)));
        let Some((last, level)) = level else { return "remove it".to_owned() };
        let near = level.keys().min_by_key(|known| distance(known, last)).filter(|known| distance(known, last) <= 3);
        match near {
            Some(known) => format!("did you mean `{known}`?"),
            None => {
                format!("known here are {}", level.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// How many letters must change to make one name the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Inner {
        port: u16,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Tree {
        listen: String,
        inner: Inner,
    }

    impl Default for Tree {
        fn default() -> Self {
            Self { listen: "127.0.0.1:1".to_owned(), inner: Inner { port: 1 } }
        }
    }

    fn of(variables: &[(&str, &str)]) -> Result<Tree, SettingsError> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Ok(Layers::<Tree>::new().environment(variables)?.into_settings())
    }

    #[test]
    fn variables_overlay_defaults_at_any_depth() {
        let tree = of(&[("PIM_INNER__PORT", "7"), ("PIM_LISTEN", "1"), ("HOME", "x")]).unwrap();
        assert_eq!(tree, Tree { listen: "1".to_owned(), inner: Inner { port: 7 } });
    }

    #[test]
    fn an_unknown_key_is_named_with_its_fix() {
        let error = of(&[("PIM_INNER__PROT", "7")]).unwrap_err().to_string();
        assert!(error.contains("`inner.prot`") && error.contains("did you mean `port`?"), "{error}");
    }

    #[test]
    fn a_value_that_does_not_fit_is_named_by_its_key() {
        let error = of(&[("PIM_INNER__PORT", "70000")]).unwrap_err().to_string();
        assert!(error.starts_with("`inner.port` in the environment"), "{error}");
    }
}
