# SPDX-License-Identifier: Apache-2.0
"""Mirroring: from an image's URL to exactly that image in S3."""
