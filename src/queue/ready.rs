//! ready - intrusive lists: the links are in the nodes, a list is twelve bytes.
//!
//! What: [`List`] holds the ready and in-flight entries of an egress path, a slot of the wheel, or
//! the connections of a path. Every operation is O(1) and allocates nothing.
//! Why this way: an entry is on exactly one list. A node that is on none carries
//! [`Links::DETACHED`], so each push and each removal asserts that rule in production.

/// No node.
pub(super) const NIL: u32 = u32::MAX;
/// In both links of a node that is on no list.
const NONE: u32 = u32::MAX - 1;

/// The two neighbours of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Links {
    next: u32,
    prev: u32,
}

impl Links {
    /// Of a node that is on no list.
    pub(super) const DETACHED: Self = Self {
        next: NONE,
        prev: NONE,
    };
}

/// Where the links of node `index` are.
pub(super) trait Nodes {
    fn links(&mut self, index: u32) -> &mut Links;
}

/// A doubly linked list of nodes that live elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct List {
    head: u32,
    tail: u32,
    len: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self {
        head: NIL,
        tail: NIL,
        len: 0,
    };

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first node, if any.
    pub(super) fn first(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    /// The last node, if any.
    pub(super) fn last(&self) -> Option<u32> {
        (self.tail != NIL).then_some(self.tail)
    }

    /// The node in front of `index`, which must be on this list.
    pub(super) fn before(&self, nodes: &mut impl Nodes, index: u32) -> Option<u32> {
        let prev = nodes.links(index).prev;
        assert!(prev != NONE, "it is on no list");
        (prev != NIL).then_some(prev)
    }

    pub(super) fn push_back(&mut self, nodes: &mut impl Nodes, index: u32) {
        let links = nodes.links(index);
        assert!(*links == Links::DETACHED, "a node is on at most one list");
        *links = Links {
            next: NIL,
            prev: self.tail,
        };
        match self.tail {
            NIL => self.head = index,
            tail => nodes.links(tail).next = index,
        }
        self.tail = index;
        self.len += 1;
    }

    pub(super) fn push_front(&mut self, nodes: &mut impl Nodes, index: u32) {
        let links = nodes.links(index);
        assert!(*links == Links::DETACHED, "a node is on at most one list");
        *links = Links {
            next: self.head,
            prev: NIL,
        };
        match self.head {
            NIL => self.tail = index,
            head => nodes.links(head).prev = index,
        }
        self.head = index;
        self.len += 1;
    }

    /// Takes `index` out; it must be on this list.
    pub(super) fn remove(&mut self, nodes: &mut impl Nodes, index: u32) {
        let Links { next, prev } = std::mem::replace(nodes.links(index), Links::DETACHED);
        assert!(self.len > 0, "removed from an empty list");
        // A detached node has links that name no node, which neither branch accepts.
        match prev {
            NIL => {
                assert!(self.head == index, "removed from another list");
                self.head = next;
            }
            prev => {
                assert!(prev != NONE, "removed twice");
                nodes.links(prev).next = next;
            }
        }
        match next {
            NIL => {
                assert!(self.tail == index, "removed from another list");
                self.tail = prev;
            }
            next => nodes.links(next).prev = prev,
        }
        self.len -= 1;
    }

    pub(super) fn pop_front(&mut self, nodes: &mut impl Nodes) -> Option<u32> {
        let index = self.first()?;
        self.remove(nodes, index);
        Some(index)
    }

    /// The nodes in order; for tests, O(n).
    #[cfg(test)]
    pub(super) fn to_vec(self, nodes: &mut impl Nodes) -> Vec<u32> {
        let mut all = Vec::new();
        let mut at = self.head;
        while at != NIL {
            all.push(at);
            at = nodes.links(at).next;
        }
        assert_eq!(all.len(), self.len as usize);
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    struct Table(Vec<Links>);

    impl Nodes for Table {
        fn links(&mut self, index: u32) -> &mut Links {
            &mut self.0[index as usize]
        }
    }

    // Seeded operations on two lists over the same nodes, compared with `VecDeque`.
    #[test]
    fn lists_agree_with_deques() {
        let mut nodes = Table(vec![Links::DETACHED; 64]);
        let mut lists = [List::EMPTY; 2];
        let mut models = [VecDeque::new(), VecDeque::new()];
        let mut random = super::super::Random::new(7);
        for _ in 0..20_000 {
            let which = random.below(2) as usize;
            let node = random.below(64) as u32;
            let free = models.iter().all(|m| !m.contains(&node));
            match random.below(4) {
                0 if free => {
                    lists[which].push_back(&mut nodes, node);
                    models[which].push_back(node);
                }
                1 if free => {
                    lists[which].push_front(&mut nodes, node);
                    models[which].push_front(node);
                }
                2 => assert_eq!(
                    lists[which].pop_front(&mut nodes),
                    models[which].pop_front()
                ),
                _ if models[which].contains(&node) => {
                    lists[which].remove(&mut nodes, node);
                    models[which].retain(|n| *n != node);
                }
                _ => {}
            }
            assert_eq!(lists[which].first(), models[which].front().copied());
            let (list, model) = (lists[which].to_vec(&mut nodes), &models[which]);
            assert!(list.iter().eq(model.iter()));
        }
    }

    // The rule "on exactly one list" is asserted, not hoped for.
    #[test]
    #[should_panic(expected = "at most one list")]
    fn a_second_push_panics() {
        let mut nodes = Table(vec![Links::DETACHED; 2]);
        let (mut a, mut b) = (List::EMPTY, List::EMPTY);
        a.push_back(&mut nodes, 0);
        b.push_back(&mut nodes, 0);
    }

    #[test]
    #[should_panic(expected = "removed twice")]
    fn a_second_removal_panics() {
        let mut nodes = Table(vec![Links::DETACHED; 2]);
        let mut list = List::EMPTY;
        list.push_back(&mut nodes, 0);
        list.push_back(&mut nodes, 1);
        list.remove(&mut nodes, 0);
        list.remove(&mut nodes, 0);
    }
}
