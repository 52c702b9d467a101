# SPDX-License-Identifier: Apache-2.0
"""Triggers that wait in the triggerer."""
