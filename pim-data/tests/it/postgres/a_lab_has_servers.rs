//! What `pim-servers` starts for a lab is what a cluster opens, by its map and secrets, before and after a promotion.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use pim_core::id::Id;
use pim_core::shard::ShardMap;
use pim_data::backend::FileSecrets;
use pim_data::cluster::{Cluster, ClusterSettings, Servers};
use pim_servers::fleet::Fleet;

use super::world::{Account, Customer, ShopResource, cx, schema, tell, write};

async fn open(folder: &Path) -> Cluster {
    let map = fs::read_to_string(folder.join("shard-map.toml")).expect("a map");
    let map = ShardMap::parse(&map).expect("a sound map");
    let secrets = Servers::new(Arc::new(FileSecrets::in_folder(folder.join("secrets"))));
    let settings = ClusterSettings::at(folder.join("cluster")).with_map(map).with_servers(secrets);
    Cluster::open(settings, schema()).await.expect("opens")
}

async fn register(cluster: &Cluster) -> Id<Customer> {
    let account = Account::new(Id::random());
    let mut unit = cluster.begin(&cx(), account.id);
    unit.save(&write(ShopResource::Account), &account).expect("saves");
    tell(&mut unit, "registered");
    unit.commit().await.expect("commits");
    account.id
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn also_after_a_standby_took_over() {
    let folder = std::env::temp_dir().join(format!("pim-data-fleet-{}", std::process::id()));
    let fleet = Fleet::create(&folder, 1).expect("starts");
    let cluster = open(&folder).await;
    let before = register(&cluster).await;
    drop(cluster);

    fleet.promote(0).expect("takes over");
    let cluster = open(&folder).await;
    let mut unit = cluster.begin(&cx(), before);
    let found = unit.load::<Account>(&write(ShopResource::Account), before).await.expect("answers");
    assert!(found.is_some(), "what was acknowledged is there");
    drop(unit);
    register(&cluster).await;
    drop(cluster);
    Fleet::remove(&folder).expect("leaves nothing behind");
}
