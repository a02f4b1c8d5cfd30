//! Promises that have a module of their own, once more on the server that all tests share.

use pim_testkit::folder::Folder;

use super::databases::Databases;
use crate::no_path_reaches_further::agree_on;
use crate::one_effect_for_each_submission::{Ground, one_effect_on};
use crate::tampering_is_found_by_the_lab::found_on;

#[test]
fn no_path_reaches_further() {
    let folder = Folder::new("reach").expect("a folder");
    let databases = Databases::new(folder.path(), 2);
    agree_on(folder, databases.settings.clone());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_effect_for_each_submission() {
    let folder = Folder::new("once").expect("a folder");
    let databases = Databases::new(folder.path(), 2);
    one_effect_on(&Ground { folder, postgres: databases.settings.clone() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tampering_is_found_by_the_lab() {
    let folder = Folder::new("tamper").expect("a folder");
    let databases = Databases::new(folder.path(), 2);
    found_on(&folder, &databases.settings, async |place: &str| databases.superuser(place).await).await;
}
