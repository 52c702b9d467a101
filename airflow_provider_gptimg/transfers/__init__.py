# SPDX-License-Identifier: Apache-2.0
"""Transfers of images to storage."""
