# SPDX-License-Identifier: Apache-2.0
"""The journal: what is known of a task instance's submissions, so that a repeated task never pays twice."""
