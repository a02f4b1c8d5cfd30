//! Rows of the lab as entities of pim-data: what their kind has in common is written once.

/// Implements [`Entity`](pim_data::entity::Entity) for a row of the control database, which is its own home key and belongs to no
/// facility: its type, the kind of its id, its resource, its table.
macro_rules! control_row {
    ($name:ty, $kind:ty, $resource:ident, $table:expr) => {
        $crate::rig::row! { $name, $kind, $resource, $table, |it| it.id.into(), |_it| None }
    };
}
pub(crate) use control_row;

/// The same for a row of a patient's at a facility.
macro_rules! patient_row {
    ($name:ty, $kind:ty, $resource:ident, $table:expr, |$it:ident| $home:expr) => {
        $crate::rig::row! { $name, $kind, $resource, $table, |$it| $home, |it| Some(it.facility_id.uuid()) }
    };
}
pub(crate) use patient_row;

macro_rules! row {
    ($name:ty, $kind:ty, $resource:ident, $table:expr, |$it:ident| $home:expr, |$at:ident| $facility:expr) => {
        impl pim_data::entity::Entity for $name {
            type Kind = $kind;
            const TABLE: &'static pim_data::entity::Table = $table;

            fn resource() -> pim_core::role::ResourceCode {
                pim_core::role::ResourceCode::of($crate::policy::LabResource::$resource)
            }

            fn id(&self) -> pim_core::id::Id<$kind> {
                self.id
            }

            fn home(&self) -> pim_core::shard::HomeKey {
                let $it = self;
                $home
            }

            fn facility(&self) -> Option<uuid::Uuid> {
                let $at = self;
                $facility
            }

            fn version(&self) -> u64 {
                self.version
            }
        }
    };
}
pub(crate) use row;
