//! Names for numbers that must not be mixed up.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(
            /// The number.
            pub $inner,
        );

        impl $name {
            /// The number as an index.
            pub fn idx(self) -> usize {
                self.0 as usize
            }
        }
    };
}

id!(
    /// A request, unique for the life of the process.
    RequestId(u64)
);
id!(
    /// A step, counted from 0.
    StepId(u64)
);
id!(
    /// A running sequence's place: what ranks keep per sequence is filed under it.
    SlotIdx(u32)
);
id!(
    /// A set of blocks that share a page table.
    GroupIdx(u16)
);
id!(
    /// A run of KV tokens in a group's pool.
    PageId(u32)
);
id!(
    /// Who asks, as far as sharing the machine goes: those who say the same share one share.
    TenantId(u32)
);
id!(
    /// A page in the host's pool of a group.
    HostPageId(u32)
);
id!(
    /// An entry of the vocabulary.
    TokenId(u32)
);
