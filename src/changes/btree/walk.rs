//! A walk through one tree, in the order of its keys, that can leave subtrees out.
//!
//! Guarantees: every node that is entered was checked; memory is one path of nodes and one batch of leaves;
//! a walk ends, whatever the bytes are, after at most as many nodes as there are blocks.

use super::TreeKind;
use super::blocks::{BATCH, Batch, Blocks, OneBlock};
use super::error::{ReadError, Result, TreeError};
use super::node::{Block, Child, Shape, check};

/// A tree of four levels has room for 2^31 entries, more than fit the largest metadata device (16 GiB).
pub(super) const MAX_LEVELS: u32 = 16;

/// What comes next in a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::changes) enum Head {
    /// A subtree that was not entered yet.
    Subtree(Child),
    /// At least one entry of a leaf; this is its key.
    Entries(u64),
    /// Nothing.
    End,
}

/// An internal node on the path.
struct Level {
    node: OneBlock,
    shape: Shape,
    promised: Child,
    /// The next child.
    next: usize,
}

impl Level {
    fn child(&self, index: usize) -> Option<Child> {
        self.shape.child(self.node.bytes(), index, self.promised)
    }
}

/// A leaf in the batch.
struct Leaf {
    slot: usize,
    shape: Shape,
    next: usize,
}

/// See the top of this file.
pub(in crate::changes) struct Walk<'a, T: TreeKind> {
    blocks: &'a Blocks<'a>,
    tree: T,
    /// Before the root was entered or skipped.
    root: Option<Child>,
    path: Vec<Level>,
    leaf: Option<Leaf>,
    batch: Batch,
    head: Head,
    nodes: u64,
    /// Kept for their memory.
    unused: Vec<OneBlock>,
    wanted: Vec<u64>,
}

/// What is known of the leaves that another walk, side by side with this one, will come to: those need not
/// be read by either, so they are not read ahead.
pub(in crate::changes) struct Horizon {
    /// Ascending.
    shared: Vec<u64>,
    /// Nothing is known of leaves with keys above this.
    last: u64,
}

impl Default for Horizon {
    /// For a walk that is alone.
    fn default() -> Self {
        Self {
            shared: Vec::new(),
            last: u64::MAX,
        }
    }
}

impl<'a, T: TreeKind> Walk<'a, T> {
    /// A walk that is about to enter `root`. Finds the height of the tree on its leftmost path.
    pub(in crate::changes) fn new(blocks: &'a Blocks<'a>, tree: T, root: u64) -> Result<Self, T> {
        let root = Child {
            height: height(blocks, tree, root)?,
            ..root_of_unknown_height(root)
        };
        Ok(Self {
            blocks,
            tree,
            root: Some(root),
            path: Vec::new(),
            leaf: None,
            batch: Batch::default(),
            head: Head::Subtree(root),
            nodes: 0,
            unused: Vec::new(),
            wanted: Vec::new(),
        })
    }

    pub(in crate::changes) fn head(&self) -> Head {
        self.head
    }

    /// Leaves out the subtree that comes next.
    pub(in crate::changes) fn skip(&mut self) {
        self.take_subtree();
        self.settle();
    }

    /// Goes into the subtree that comes next.
    pub(in crate::changes) fn enter(&mut self, horizon: &Horizon) -> Result<(), T> {
        let Head::Subtree(child) = self.head else {
            return Ok(());
        };
        inside(self.blocks, self.tree, child.block)?;
        // Each node of a tree has keys of its own, so it is met once.
        self.nodes += 1;
        if self.nodes > self.blocks.count {
            return Err(TreeError::TooManyNodes {
                tree: self.tree,
                blocks: self.blocks.count,
            });
        }
        if child.height == 0 {
            self.enter_leaf(child, horizon)?;
        } else {
            let mut node = self.unused.pop().unwrap_or_default();
            let shape = check(
                self.tree,
                node.read(self.blocks, child.block)?,
                child,
                Some(false),
            )?;
            self.take_subtree();
            self.path.push(Level {
                node,
                shape,
                promised: child,
                next: 0,
            });
        }
        self.settle();
        Ok(())
    }

    /// True if entering what comes next will read leaves, for which a [`Horizon`] is asked.
    pub(in crate::changes) fn will_read_leaves(&self) -> bool {
        matches!(self.head, Head::Subtree(Child { height: 0, block, .. }) if self.batch.slot(block).is_none())
    }

    fn enter_leaf(&mut self, child: Child, horizon: &Horizon) -> Result<(), T> {
        if self.batch.slot(child.block).is_none() {
            self.read_ahead(child, horizon);
        }
        let Some(slot) = self.batch.slot(child.block) else {
            // It was left out because it could not be read. Once more, for the error.
            OneBlock::default().read(self.blocks, child.block)?;
            let source = std::io::Error::other("it could be read only at the second attempt");
            let block = child.block;
            return Err(ReadError { block, source }.into());
        };
        let shape = check(self.tree, self.batch.bytes(slot), child, Some(true))?;
        self.take_subtree();
        self.leaf = Some(Leaf {
            slot,
            shape,
            next: 0,
        });
        Ok(())
    }

    /// Reads `child`, and leaves after it that will be entered as well.
    fn read_ahead(&mut self, child: Child, horizon: &Horizon) {
        self.wanted.clear();
        self.wanted.push(child.block);
        if let Some(level) = self.path.last() {
            let following = (level.next + 1..).map_while(|index| level.child(index));
            let known = following.take_while(|next| next.low <= horizon.last);
            let ahead = known
                .map(|next| next.block)
                .filter(|block| *block < self.blocks.count)
                .filter(|block| horizon.shared.binary_search(block).is_err());
            self.wanted.extend(ahead.take(BATCH - 1));
        }
        self.batch.fill(self.blocks, &mut self.wanted);
    }

    /// What another walk may know of this one.
    pub(in crate::changes) fn horizon(&self, horizon: &mut Horizon) {
        horizon.shared.clear();
        horizon.last = u64::MAX;
        match (self.head, self.path.last()) {
            (Head::Subtree(Child { height: 0, .. }) | Head::Entries(_), Some(level)) => {
                horizon.last = level.promised.last;
                let to_come = (level.next..).map_while(|index| level.child(index));
                horizon.shared.extend(to_come.map(|child| child.block));
                horizon.shared.sort_unstable();
            }
            (
                Head::Subtree(Child {
                    height: 0, block, ..
                }),
                None,
            ) => horizon.shared.push(block),
            (Head::Subtree(child), _) => horizon.last = child.low.saturating_sub(1),
            (Head::Entries(_) | Head::End, _) => {}
        }
    }

    /// Keys and values of the leaf that the walk is in, from the next entry on.
    pub(in crate::changes) fn entries(&self) -> (&[[u8; 8]], &[u8]) {
        let Some(leaf) = &self.leaf else {
            return (&[], &[]);
        };
        let bytes: &Block = self.batch.bytes(leaf.slot);
        let value_bytes = self.tree.leaf_value_bytes() as usize;
        (
            &leaf.shape.keys(bytes)[leaf.next..],
            &leaf.shape.values(bytes)[leaf.next * value_bytes..],
        )
    }

    /// Goes past so many of the [`entries`](Self::entries).
    pub(in crate::changes) fn consume(&mut self, entries: usize) {
        if let Some(leaf) = &mut self.leaf {
            leaf.next = leaf.next.saturating_add(entries).min(leaf.shape.entries);
        }
        self.settle();
    }

    fn take_subtree(&mut self) {
        if self.root.take().is_none()
            && let Some(level) = self.path.last_mut()
        {
            level.next += 1;
        }
    }

    fn settle(&mut self) {
        if let Some(leaf) = &self.leaf {
            let keys = leaf.shape.keys(self.batch.bytes(leaf.slot));
            if let Some(key) = keys.get(leaf.next) {
                self.head = Head::Entries(u64::from_le_bytes(*key));
                return;
            }
            self.leaf = None;
        }
        while let Some(level) = self.path.last() {
            if let Some(child) = level.child(level.next) {
                self.head = Head::Subtree(child);
                return;
            }
            self.unused.extend(self.path.pop().map(|level| level.node));
        }
        self.head = Head::End;
    }
}

fn root_of_unknown_height(block: u64) -> Child {
    Child {
        block,
        low: 0,
        last: u64::MAX,
        height: 0,
    }
}

/// Levels below the root.
fn height<T: TreeKind>(blocks: &Blocks<'_>, tree: T, root: u64) -> Result<u32, T> {
    let mut levels = 0;
    descend(blocks, tree, root, |shape, bytes, parent| {
        if shape.is_leaf {
            return None;
        }
        levels += 1;
        shape.child(bytes, 0, parent)
    })?;
    Ok(levels)
}

/// The value of `key`, if it is in the tree, as `read` understands its bytes.
pub(in crate::changes) fn look_up<T: TreeKind, V>(
    blocks: &Blocks<'_>,
    tree: T,
    root: u64,
    key: u64,
    read: impl Fn(&[u8]) -> V,
) -> Result<Option<V>, T> {
    let mut found = None;
    descend(blocks, tree, root, |shape, bytes, parent| {
        let keys = shape.keys(bytes);
        let up_to = keys.partition_point(|at| u64::from_le_bytes(*at) <= key);
        let index = up_to.checked_sub(1)?;
        if !shape.is_leaf {
            return shape.child(bytes, index, parent);
        }
        if u64::from_le_bytes(*keys.get(index)?) == key {
            let length = tree.leaf_value_bytes() as usize;
            let mut values = shape.values(bytes).chunks_exact(length);
            found = values.nth(index).map(&read);
        }
        None
    })?;
    Ok(found)
}

/// The largest key of a tree; `None` where it is empty.
pub(in crate::changes) fn last_key<T: TreeKind>(
    blocks: &Blocks<'_>,
    tree: T,
    root: u64,
) -> Result<Option<u64>, T> {
    let mut found = None;
    descend(blocks, tree, root, |shape, bytes, parent| {
        let keys = shape.keys(bytes);
        let index = keys.len().checked_sub(1)?;
        if !shape.is_leaf {
            return shape.child(bytes, index, parent);
        }
        found = keys.last().map(|key| u64::from_le_bytes(*key));
        None
    })?;
    Ok(found)
}

/// One path downwards, to where `next` says.
fn descend<T: TreeKind>(
    blocks: &Blocks<'_>,
    tree: T,
    root: u64,
    mut next: impl FnMut(Shape, &Block, Child) -> Option<Child>,
) -> Result<(), T> {
    let mut node = OneBlock::default();
    let mut child = root_of_unknown_height(root);
    for _ in 0..MAX_LEVELS {
        inside(blocks, tree, child.block)?;
        let bytes = node.read(blocks, child.block)?;
        let shape = check(tree, bytes, child, None)?;
        match next(shape, bytes, child) {
            Some(below) => child = below,
            None => return Ok(()),
        }
    }
    Err(TreeError::Node {
        tree,
        block: child.block,
        field: "depth",
        found: MAX_LEVELS.into(),
        expected: format!("less than {MAX_LEVELS}"),
    })
}

/// Block 0 is the superblock, so no node is there.
fn inside<T: TreeKind>(blocks: &Blocks<'_>, tree: T, block: u64) -> Result<(), T> {
    if block == 0 || block >= blocks.count {
        return Err(TreeError::Outside {
            tree,
            block,
            blocks: blocks.count,
        });
    }
    Ok(())
}
