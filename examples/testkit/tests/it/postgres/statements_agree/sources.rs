//! Statements as they stand in source files: the texts that `SqlPair` and `Statement` are made of.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use pim_data::backend::SqlPair;
use syn::visit::{Visit, visit_expr_call, visit_item_mod};
use syn::{Expr, ExprCall, ItemConst, ItemMod, Lit};

/// A statement, and where it stands.
pub(super) struct Found {
    pub(super) pair: SqlPair,
    pub(super) sqlite: bool,
    pub(super) postgres: bool,
    file: PathBuf,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.file.display(), self.pair)
    }
}

/// Those of every source file below a folder, tests apart.
pub(super) fn statements_in(folder: &Path) -> Vec<Found> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(statements_in(&path));
        } else if path.extension().is_some_and(|it| it == "rs") && path.file_stem().is_some_and(|it| it != "tests") {
            let file = syn::parse_file(&fs::read_to_string(&path).expect("a text")).expect("a source file");
            let mut reader = Reader { file: path, texts: BTreeMap::new(), found: Vec::new() };
            Texts(&mut reader.texts).visit_file(&file);
            reader.visit_file(&file);
            all.append(&mut reader.found);
        }
    }
    all
}

/// Constants of a file that are texts.
struct Texts<'a>(&'a mut BTreeMap<String, String>);

impl<'ast> Visit<'ast> for Texts<'_> {
    fn visit_item_const(&mut self, item: &'ast ItemConst) {
        if let Expr::Lit(literal) = &*item.expr
            && let Lit::Str(text) = &literal.lit
        {
            self.0.insert(item.ident.to_string(), text.value());
        }
    }
}

struct Reader {
    file: PathBuf,
    texts: BTreeMap<String, String>,
    found: Vec<Found>,
}

impl Reader {
    fn text_of(&self, argument: &Expr) -> Option<&'static str> {
        let text = match argument {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => text.value(),
                _ => return None,
            },
            Expr::Path(path) => self.texts.get(&path.path.segments.last()?.ident.to_string())?.clone(),
            _ => return None,
        };
        let first = text.split_whitespace().next()?.to_ascii_uppercase();
        let is_one = ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"].contains(&first.as_str()) && !text.contains(';');
        is_one.then(|| &*text.leak())
    }

    fn keep(&mut self, call: &ExprCall) {
        let Expr::Path(function) = &*call.func else { return };
        let mut names = function.path.segments.iter().rev().map(|segment| segment.ident.to_string());
        let (Some(made), Some(of)) = (names.next(), names.next()) else { return };
        if of != "SqlPair" && of != "Statement" {
            return;
        }
        let texts: Vec<_> = call.args.iter().filter_map(|argument| self.text_of(argument)).collect();
        let (pair, postgres, sqlite) = match (made.as_str(), &texts[..]) {
            ("of", [postgres, sqlite]) => (SqlPair::of(postgres, sqlite), true, true),
            ("same", [text]) => (SqlPair::same(text), true, true),
            ("postgres", [text]) => (SqlPair::postgres(text), true, false),
            ("sqlite", [text]) => (SqlPair::sqlite(text), false, true),
            _ => return,
        };
        self.found.push(Found { pair, sqlite, postgres, file: self.file.clone() });
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.ident != "tests" {
            visit_item_mod(self, item);
        }
    }
    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        self.keep(call);
        visit_expr_call(self, call);
    }
}
