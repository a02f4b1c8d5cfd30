//! Budgets, module docs and names of source files.

use std::path::Path;

use syn::spanned::Spanned;
use syn::visit::Visit;

use super::Finding;

const FILE_LINES_MAX: usize = 500;
const FILE_LINES_MEDIAN_MAX: usize = 150;
const MAIN_LINES_MAX: usize = 150;
const FUNCTION_LINES_MAX: usize = 70;
const FORBIDDEN_NAMES: &[&str] = &["util", "utils", "common", "misc", "helper", "helpers", "types", "errors", "mod"];

/// The one way into `tracing` that takes anything, and the one room that may use it.
const RAW_EVENT: &str = "tracing::event!";
const LOG_ROOM: &str = "pim-core/src/log.rs";

/// Checks one file; returns its length without tests, unless it is a test.
pub(super) fn check(file: &Path, text: &str, findings: &mut Vec<Finding>) -> Option<usize> {
    let place = file.display().to_string();
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    if FORBIDDEN_NAMES.contains(&stem.as_ref()) {
        findings.push(Finding::new(&place, format!("a room called `{stem}` has no subject: name the idea")));
    }
    if text.contains(RAW_EVENT) && place != LOG_ROOM && !place.starts_with("xtask/") && !is_test_file(file) {
        findings.push(Finding::new(&place, "logs past the types: pim_core::{info, warn, error}! admit by type"));
    }
    let parsed = match syn::parse_file(text) {
        Ok(parsed) => parsed,
        Err(error) => {
            findings.push(Finding::new(&place, format!("does not parse: {error}")));
            return None;
        }
    };
    let is_test = is_test_file(file);
    if !is_test && !has_module_doc(&parsed) {
        findings.push(Finding::new(&place, "has no `//!` sentence that says what the room is for"));
    }
    Functions { place: &place, is_test, findings }.visit_file(&parsed);
    if is_test {
        return None;
    }
    let length = text.lines().count() - test_lines(&parsed);
    let is_program = file.components().any(|part| part.as_os_str() == "programs");
    let most = if is_program || stem == "main" { MAIN_LINES_MAX } else { FILE_LINES_MAX };
    if length > most {
        let rule = format!("has {length} lines without tests, at most {most}: split it along the domain");
        findings.push(Finding::new(&place, rule));
    }
    Some(length)
}

/// Checks the median over all files.
pub(super) fn check_median(lengths: &mut [usize], findings: &mut Vec<Finding>) {
    lengths.sort_unstable();
    if let Some(&median) = lengths.get(lengths.len() / 2).filter(|&&median| median > FILE_LINES_MEDIAN_MAX) {
        let rule = format!("the median file has {median} lines, at most {FILE_LINES_MEDIAN_MAX}");
        findings.push(Finding::new("workspace", rule));
    }
}

fn is_test_file(file: &Path) -> bool {
    let in_tests = file.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "benches")));
    in_tests || file.file_stem().is_some_and(|stem| stem == "tests")
}

fn has_module_doc(file: &syn::File) -> bool {
    file.attrs.iter().any(|attr| attr.path().is_ident("doc"))
}

fn is_cfg_test(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|attr| {
        attr.path().is_ident("cfg") && attr.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

fn test_lines(file: &syn::File) -> usize {
    let tests = file.items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) if is_cfg_test(&module.attrs) => Some(module.span()),
        _ => None,
    });
    tests.map(|span| span.end().line - span.start().line + 1).sum()
}

struct Functions<'a> {
    place: &'a str,
    is_test: bool,
    findings: &'a mut Vec<Finding>,
}

impl Functions<'_> {
    fn measure(&mut self, name: &syn::Ident, block: &syn::Block) {
        let span = block.span();
        let lines = span.end().line - span.start().line + 1;
        if lines > FUNCTION_LINES_MAX && !self.is_test {
            let place = format!("{}:{}", self.place, span.start().line);
            let rule = format!("`{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}: give its steps names");
            self.findings.push(Finding::new(place, rule));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.measure(&function.sig.ident, &function.block);
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.measure(&function.sig.ident, &function.block);
        syn::visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_cfg_test(&module.attrs) {
            syn::visit::visit_item_mod(self, module);
        }
    }
}
