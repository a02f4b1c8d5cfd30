//! A row of the control database: it is its own home key, and belongs to no facility.

/// Implements [`Entity`](pim_data::entity::Entity) for such a row: its type, the kind of its id, its resource, its table.
macro_rules! control_row {
    ($name:ty, $kind:ty, $resource:ident, $table:expr) => {
        impl pim_data::entity::Entity for $name {
            type Kind = $kind;
            const TABLE: &'static pim_data::entity::Table = $table;

            fn resource() -> pim_core::role::ResourceCode {
                pim_core::role::ResourceCode::of(crate::policy::LabResource::$resource)
            }

            fn id(&self) -> pim_core::id::Id<$kind> {
                self.id
            }

            fn home(&self) -> pim_core::shard::HomeKey {
                self.id.into()
            }

            fn facility(&self) -> Option<uuid::Uuid> {
                None
            }

            fn version(&self) -> u64 {
                self.version
            }
        }
    };
}
pub(crate) use control_row;
