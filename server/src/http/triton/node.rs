//! JSON whose members stand in the order in which Triton writes them.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

/// A JSON value.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Object(Vec<(&'static str, Node)>),
    List(Vec<Node>),
    Value(Value),
}

impl<T: Into<Value>> From<T> for Node {
    fn from(value: T) -> Node {
        Node::Value(value.into())
    }
}

/// An object.
pub(super) fn object<const N: usize>(members: [(&'static str, Node); N]) -> Node {
    Node::Object(members.into())
}

/// A list.
pub(super) fn list(items: impl IntoIterator<Item = Node>) -> Node {
    Node::List(items.into_iter().collect())
}

impl Node {
    /// The text.
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).expect("values of ours can be written as JSON")
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Node::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (name, node) in members {
                    map.serialize_entry(name, node)?;
                }
                map.end()
            }
            Node::List(items) => items.serialize(serializer),
            Node::Value(value) => value.serialize(serializer),
        }
    }
}
